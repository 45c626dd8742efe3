"""The section of the report on weights, and where it says that they disagree with gains."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bts_lightning.errors import DataError
from bts_lightning.modalities import MODALITIES, REGIONS, SCHEMES, parse_subset
from bts_lightning.report.beside import BESIDE, read_all, read_beside
from bts_lightning.report.importance import disagreements, weight_rows
from bts_lightning.report.page import page
from bts_lightning.report.summary import summarise
from bts_lightning.report.table import EvaluationTable
from tests.report.balance import Balance
from tests.report.synthetic import protocol, rows

FACTS = protocol(importance=True)
PATIENTS = ["a", "b", "c"]


def weights(subsets: tuple[str, ...], regions: int, experts: int = 1) -> np.ndarray:
    """Weigh those that are there alike, and give later experts less."""
    there = np.array([parse_subset(name) for name in subsets], float)
    share = (there / there.sum(axis=1, keepdims=True))[:, None, :, None]
    falling = np.arange(experts, 0, -1) / np.arange(1, experts + 1).sum()
    return np.asarray(np.tile(share, (1, regions, 1, 1)) * falling)


def told(table: EvaluationTable, **kinds: int) -> pd.DataFrame:
    made: list[dict[str, object]] = []
    for case in table.cases:
        means = {
            (kind.replace("_", " "), 0): weights(table.subsets, len(table.regions), experts)
            for kind, experts in kinds.items()
        }
        made += weight_rows(case, table.subsets, table.regions, means)
    return pd.DataFrame(made, columns=BESIDE["importance"])


def test_rows_hold_a_modality_a_column_and_an_expert_a_line() -> None:
    means = {("gates", 2): weights(("t1+flair",), 1, experts=2)}
    assert weight_rows("a", ["t1+flair"], ["ET"], means) == [
        {"case": "a", "subset": "t1+flair", "region": "ET", "kind": "gates", "level": 2}
        | {"expert": e, "t1": w, "t1c": 0.0, "t2": 0.0, "flair": w}
        for e, w in ((1, 0.333333), (2, 0.166667))
    ]


@pytest.mark.parametrize("kinds", [{"attention": 1}, {"gates": 3, "global_gates": 3}])
def test_the_section_is_well_formed_and_stands_beside_gains(kinds: dict[str, int]) -> None:
    table = EvaluationTable.from_rows(rows(4))
    text = page(summarise(table, FACTS), [], {"importance": told(table, **kinds)})
    parser = Balance()
    parser.feed(text)
    assert parser.open == []
    section = text.partition('id="weights"')[2].partition("</section>")[0]
    assert "T1 25.0, T1c 25.0, T2 25.0, FLAIR 25.0" in section
    assert ("patient by patient" in section) == ("gates" in kinds)
    assert ("all together" in section) == ("gates" in kinds)
    assert 'data-weight="1"' not in section  # gates of all modalities compare none
    assert 'href="#weights"' in text


def test_other_schemes_and_cases_without_a_region_have_their_own_columns() -> None:
    regions = tuple(SCHEMES["cavity"].regions)
    made = rows(3, lacking={2: (True, False, True, True)})
    made += [row | {"region": "RC"} for row in made if row["region"] == "ET"]
    table = EvaluationTable.from_rows(made)
    assert table.regions == regions
    frame = told(table, attention=1)
    frame.loc[frame.region == "RC", list(MODALITIES)] = np.nan
    text = page(summarise(table, FACTS | {"scheme": "cavity"}), [], {"importance": frame})
    section = text.partition('id="weights"')[2].partition("</section>")[0]
    assert "no case has it" in section


def test_few_subsets_are_averaged_over_where_a_modality_is_there() -> None:
    some = [r for r in rows(3) if r["subset"] in ("t1c+flair", "t1c")]
    table = EvaluationTable.from_rows(some)
    text = page(summarise(table, FACTS), [], {"importance": told(table, attention=1)})
    assert "no case has it" in text  # T1 is never there
    with_all = [r for r in rows(3) if r["subset"] in ("t1c+flair", "t1+t2")]
    table = EvaluationTable.from_rows(with_all)
    text = page(summarise(table, FACTS), [], {"importance": told(table, attention=1)})
    assert "T1 50.0, T1c 50.0, T2 50.0, FLAIR 50.0" in text
    assert "need a case that shows all 15 subsets" in text


def test_a_network_without_weights_says_so() -> None:
    table = EvaluationTable.from_rows(rows(2))
    empty = pd.DataFrame([], columns=BESIDE["importance"])
    assert "A2FSeg does not weigh its modalities" in page(
        summarise(table, FACTS), [], {"importance": empty}
    )
    assert 'id="weights"' not in page(summarise(table, protocol()), [])


def test_disagreements_are_told_in_words() -> None:
    apart = np.array([[-1.0], [0.0], [1.0]]) * 0.1  # three patients
    order = np.array([10.0, 20, 30, 40])
    gains = np.array([5.0, 40, 20, 30])
    weighed, gained = ((o + apart * [1, 2, 3, 4])[:, None, :] for o in (order, gains))
    first, last = disagreements(["ET"], weighed, PATIENTS, gained, PATIENTS)
    assert first == (
        "ET: T2 weighs more than T1c (30.0 % against 20.0 %) and gains less (20.0 against 40.0 "
        "points)*; FLAIR weighs more than T1c (40.0 % against 20.0 %) and gains less (30.0 against "
        "40.0 points)*."
    )
    assert last.startswith("* marks where both")
    # One patient says nothing about others.
    assert "*" not in disagreements(["ET"], weighed[:1], ["a"], gained[:1], ["a"])[0]
    alike = disagreements(["ET"], weighed, PATIENTS, weighed, PATIENTS)[0]
    assert alike == "ET: weights and Shapley values rank the sequences alike."
    nothing = np.full_like(weighed, np.nan)
    assert len(disagreements(["ET"], nothing, PATIENTS, gained, PATIENTS)) == 1


def test_an_empty_weight_is_no_number_and_damage_is_named(tmp_path: Path) -> None:
    table = EvaluationTable.from_rows(rows(2))
    frame = told(table, attention=1)
    frame.loc[frame.region == "ET", list(MODALITIES)] = np.nan
    file = tmp_path / "importance.csv"
    frame.to_csv(file, index=False)
    read = read_beside(file, "importance")
    assert read[read.region == "ET"][list(MODALITIES)].isna().all(axis=None)
    assert list(REGIONS) == read.region.unique().tolist()
    frame["region"] = "GTV"
    with pytest.raises(DataError, match=r"importance\.csv holds a case, subset, region that"):
        page(summarise(table, FACTS), [], {"importance": frame})
    frame.assign(t1="much").to_csv(file, index=False)
    with pytest.raises(DataError, match=r"importance\.csv: could not convert string to float"):
        read_all(tmp_path, FACTS)
