"""What a study chooses, from counts whose answer is known."""

import numpy as np
import pytest

from bts_lightning.inference.cleanup import counted_by_size
from bts_lightning.modalities import BRATS
from bts_lightning.study.choice import PART_MINIMA, Cleanup, choose
from bts_lightning.study.validation import candidates


def counts(*cases: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Count cases of one subset."""
    minima = np.array(PART_MINIMA)
    return np.stack([counted_by_size(found, truth, minima, 4) for found, truth in cases])[:, None]


def tumour(edge: int, specks: int = 0, speck: int = 1) -> np.ndarray:
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[:edge, :edge, :edge] = 2
    labels[1, 1, 1 : edge - 1] = 1
    labels[2, 2, 1 : edge - 1] = 3
    for n in range(specks):
        labels[-1, 2 * n, -speck:] = 3
    return labels


def test_singles_stand_before_pairs() -> None:
    assert candidates(["a", "b", "c"]) == [
        *(("a",), ("b",), ("c",)),
        *(("a", "b"), ("a", "c"), ("b", "c")),
    ]


def test_the_best_mean_is_chosen_and_specks_are_cleaned_up() -> None:
    truth, patients = tumour(10), [str(i) for i in range(10)]
    good = counts(*[(tumour(10, specks=3), truth)] * 10)
    bad = counts(*[(tumour(6), truth)] * 10)
    choice = choose({"bad": bad, "good": good, "bad + good": good}, patients, BRATS, "brats")
    assert choice.name == "good"
    assert choice.table["good"].mean[-1] == pytest.approx(choice.plain)
    assert choice.gain["bad"].mean[-1] > 0.1
    assert choice.gain["bad + good"].mean[-1] == 0
    # Specks of one voxel: the least rule that takes them all.
    assert choice.cleanup == Cleanup(component_minimum=10)
    assert choice.held_out == 1
    assert choice.cleaned.mean[-1] == pytest.approx(1 - choice.plain)


def test_what_only_helps_one_patient_is_not_taken() -> None:
    truth = tumour(10)
    # A small true lesion that is found, in all but one; there a speck is invented.
    small = truth.copy()
    small[-1, -1, -8:] = 3
    invented = truth.copy()
    invented[-1, -1, -8:] = 3
    of = counts((invented, truth), *[(small, small)] * 9)
    choice = choose({"a": of}, [str(i) for i in range(10)], BRATS, "brats")
    assert choice.cleanup == Cleanup()
    assert choice.held_out <= choice.plain


def test_scans_of_one_patient_are_held_out_together() -> None:
    truth = tumour(10)
    of = counts(*[(tumour(10, specks=2), truth)] * 4)
    # One patient leaves nobody to choose by, so nothing is done.
    choice = choose({"a": of}, ["p"] * 4, BRATS, "brats")
    assert choice.cleanup == Cleanup()
    assert choice.held_out == choice.plain


def test_a_subset_that_a_case_lacks_takes_no_part() -> None:
    truth = tumour(10)
    whole = counts(*[(tumour(8), truth)] * 4)
    two = np.concatenate([whole, whole], axis=1)
    two[0, 1] = -1
    patients = list("abcd")
    one = choose({"a": whole}, patients, BRATS, "brats")
    both = choose({"a": two}, patients, BRATS, "brats")
    assert both.plain == pytest.approx(one.plain)
