"""Lesion-wise scores are those that the official programs print."""

from pathlib import Path

import numpy as np
import pytest

from bts_lightning.metrics.lesions.measure import Found
from bts_lightning.metrics.lesions.tasks import POLICIES, LesionRules
from bts_lightning.metrics.score import score
from bts_lightning.metrics.table import METRICS, columns_of
from bts_lightning.modalities import REGIONS
from tests.metrics.golden_lesions import LIMIT, worst_of

FILES = sorted((Path(__file__).parents[1] / "golden" / "lesions").glob("*.npz"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_the_official_programs_print(file: Path) -> None:
    assert worst_of(file) <= LIMIT


def test_all_files_are_there() -> None:
    # Several faults show in one of them only.
    assert len(FILES) == 29


@pytest.mark.parametrize("policy", POLICIES)
def test_subsets_together_score_as_one_by_one(policy: str) -> None:
    with np.load(FILES[0].parent / "scattered_a.npz") as npz:
        truth, predicted = npz["truth"] % 4, npz["prediction"] % 4
    many = np.stack([predicted, truth, np.roll(predicted, 5, 2), 0 * truth])
    rules = LesionRules(policy)  # type: ignore[arg-type]
    each: list[Found] = []
    together = score(many, truth, (1, 1.5, 2), lesions=rules, each=each, threads=2)
    assert list(together) == columns_of(rules)
    for s, alone in enumerate(many):
        single: list[Found] = []
        scores = score(alone[None], truth, (1, 1.5, 2), lesions=rules, each=single, threads=1)
        for name, values in scores.items():
            np.testing.assert_array_equal(values[0], together[name][s])
        mine = [(f.region, f.mm3, f.is_found, f.dice, f.hd95) for f in each if f.subset == s]
        assert mine == [(f.region, f.mm3, f.is_found, f.dice, f.hd95) for f in single]
    for r in range(len(REGIONS)):
        counted = [f for f in each if f.subset == 0 and f.region == r and f.counts]
        assert len(counted) == together["lesions"][0, r]
        assert sum(f.is_found for f in counted) == together["found"][0, r]


def test_a_lesion_found_one_missed_and_one_invented() -> None:
    truth, predicted = np.zeros((2, 60, 20, 20), np.uint8)
    truth[4:10, 4:10, 4:10] = predicted[4:10, 4:10, 4:10] = 3  # 216 mm³, found as it is
    truth[24:30, 4:10, 4:10] = 3
    predicted[44:50, 4:10, 4:10] = 3
    for policy, dice, hd95 in (
        ("brats2023", 1 / 3, 2 * 374 / 3),
        ("brats2024", 1 / 3, 2 * 337 / 3),
        ("brats2025", 1.0, 0.0),  # over matches alone
    ):
        scores = score(predicted[None], truth, lesions=LesionRules(policy))  # type: ignore[arg-type]
        assert np.allclose(scores["lesion_dice"], dice)
        assert np.allclose(scores["lesion_hd95"], hd95)
        assert np.allclose(scores["lesion_f1"], 0.5)
        counts = [scores[name][0, 0] for name in ("lesions", "found", "false_lesions")]
        assert counts == [2, 1, 1]


def test_what_a_region_that_is_rightly_or_wrongly_empty_scores() -> None:
    empty, full = np.zeros((2, 12, 12, 12), np.uint8)
    full[3:9, 3:9, 3:9] = 3
    maps = {(0, 0): (empty, empty), (0, 1): (empty, full), (1, 0): (full, empty)}
    for policy, both, one in (
        ("brats2023", (1, 0), (0, 374)),
        ("brats2024", (1, 0), (0, 337)),
        ("brats2025", (np.nan, np.nan), (0, 373)),
    ):
        for case, (truth, predicted) in maps.items():
            scores = score(predicted[None], truth, lesions=LesionRules(policy))  # type: ignore[arg-type]
            expected = one if any(case) else both
            for name, value in zip(("lesion_dice", "lesion_hd95"), expected, strict=True):
                np.testing.assert_array_equal(scores[name], value)


def test_metrics_of_lesions_are_measured_where_they_are_asked_for() -> None:
    assert not {name for name, metric in METRICS.items() if metric.by} & set(columns_of(None))
    assert "lesion_nsd" not in columns_of(LesionRules("brats2023"))
    assert "lesion_nsd" in columns_of(LesionRules("brats2024"))
