"""The section of the report on probabilities, and what stands of it in the summary."""

import re
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bts_lightning.errors import DataError
from bts_lightning.metrics.calibration.counts import AREAS, BINS, Calibration
from bts_lightning.modalities import REGIONS, SUBSETS
from bts_lightning.report.beside import BESIDE, read_all
from bts_lightning.report.calibration import bin_rows
from bts_lightning.report.page import page
from bts_lightning.report.risk import risk_coverage
from bts_lightning.report.summary import markdown, summarise
from bts_lightning.report.table import SUBSET_NAMES, EvaluationTable
from tests.report.balance import Balance
from tests.report.synthetic import protocol, rows


def with_entropy(**changes: float) -> EvaluationTable:
    made = [r | {"entropy": 1 - r["dice"]} | changes for r in rows(4)]
    return EvaluationTable.from_rows(made)


def test_the_section_is_well_formed_and_adds_up_cases() -> None:
    bins = np.zeros((len(SUBSETS), 3, len(AREAS), BINS, 3))
    bins[:, :, :, 0] = [30, 1.5, 3]
    bins[:, :, :, 9] = [10, 6.2, 5]
    counted = Calibration(bins, bins[..., 0, 0], bins[..., 0, 0, 0])
    rows = (bin_rows(case, SUBSET_NAMES, tuple(REGIONS), counted) for case in "ab")
    each = pd.DataFrame([row for some in rows for row in some])
    assert len(each) == 2 * len(SUBSETS) * 3 * len(AREAS) * 2
    text = page(summarise(with_entropy(), protocol(calibration=True)), [], {"calibration": each})
    parser = Balance()
    parser.feed(text)
    assert parser.open == []
    assert text.count('data-reliability="') == 4 * len(AREAS)
    assert "50.0 % of 300 voxels" in text  # 10 × 15 subsets × 2 cases
    assert "50.0 % of 20 voxels" in text  # all four sequences
    assert "error 6.8 %" in text  # (1.5 + 1.2) / 40


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bin": BINS}, "holds a subset, region, area, bin that its evaluation lacks"),
        ({"region": "ED"}, "holds a subset, region, area, bin that"),
        ({"voxels": "many"}, r"calibration\.csv: could not convert string to float: 'many'"),
    ],
)
def test_damaged_counts_are_named(changes: dict[str, object], words: str, tmp_path: Path) -> None:
    good = dict.fromkeys(BESIDE["calibration"], 1) | {"subset": "t1", "region": "ET", "area": "all"}
    facts = protocol(calibration=True)
    for row in (good, good | changes):
        pd.DataFrame([row]).to_csv(tmp_path / "calibration.csv", index=False)
        with pytest.raises(DataError, match=words) if row is not good else nullcontext():
            page(summarise(with_entropy(), facts), [], read_all(tmp_path, facts))


def test_a_network_that_gave_no_number_has_no_error(tmp_path: Path) -> None:
    row = dict.fromkeys(BESIDE["calibration"], 1) | {"subset": "t1", "region": "ET", "area": "band"}
    pd.DataFrame([row | {"probability": np.nan}]).to_csv(tmp_path / "calibration.csv", index=False)
    facts = protocol(calibration=True)
    text = page(summarise(with_entropy(), facts), [], read_all(tmp_path, facts))
    assert "enhancing tumour, no value</figcaption>" in text
    assert "nan" not in re.search('<section id="calibration">.*?</section>', text, re.DOTALL)[0]


def test_without_counts_risk_and_coverage_remain_and_without_columns_nothing() -> None:
    text = page(summarise(with_entropy(), protocol()), [])
    assert 'id="calibration"' in text
    assert "data-reliability" not in text
    plain = summarise(EvaluationTable.from_rows(rows(3)), protocol())
    assert 'id="calibration"' not in page(plain, [])
    assert "coverage" not in markdown(plain)


def test_who_is_unsure_where_it_is_wrong_has_the_best_area() -> None:
    areas, cases = risk_coverage(with_entropy())
    np.testing.assert_allclose(areas[..., 0], areas[..., 2])
    assert (areas[..., 0] < areas[..., 1]).all()
    assert (cases == 4).all()
    areas, _ = risk_coverage(with_entropy(entropy=0.5))
    np.testing.assert_allclose(areas[..., 0], areas[..., 1])
    unknown = with_entropy(entropy=float("nan"))
    areas, cases = risk_coverage(unknown)
    assert np.isnan(areas).all()
    assert (cases == 0).all()
    assert "| – | – | – | 0 |" in markdown(
        summarise(with_entropy(entropy=float("nan")), protocol())
    )
