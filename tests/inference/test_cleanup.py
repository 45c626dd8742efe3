"""Small parts and a small ET: what is taken out, and how it is counted beforehand."""

import numpy as np
import pytest

from bts_lightning.errors import ConfigError
from bts_lightning.inference import Protocol
from bts_lightning.inference.cleanup import clean, counted_by_size
from bts_lightning.metrics.score import score
from bts_lightning.modalities import BRATS, SCHEMES
from bts_lightning.study.choice import PART_MINIMA, Cleanup, cleanups, dice


def blobs(seed: int, size: int = 24) -> np.ndarray:
    """Draw parts of many sizes, each with voxels of all tissues."""
    chance = np.random.default_rng(seed)
    labels = np.zeros((size,) * 3, np.uint8)
    for edge in (1, 1, 2, 3, 3, 4, 5, 8):
        z, y, x = chance.integers(0, size - edge, 3)
        labels[z : z + edge, y : y + edge, x : x + edge] = chance.choice([1, 2, 3], (edge,) * 3)
    return labels


def test_a_small_part_is_background_also_where_it_touches_the_edge() -> None:
    labels = np.zeros((6, 6, 6), np.uint8)
    labels[0, 0, :3] = [1, 2, 3]
    labels[3:5, 3:5, 3:5] = 2
    labels[5, 5, 5] = 3  # by a corner, so it belongs to the eight
    few, many = labels.copy(), labels.copy()
    clean(few, Protocol(component_minimum=4), BRATS)
    assert not few[0].any()
    assert np.count_nonzero(few) == 9
    clean(many, Protocol(component_minimum=10), BRATS)
    assert not many.any()
    clean(labels, Protocol(component_minimum=3), BRATS)
    assert np.count_nonzero(labels) == 12
    nothing = np.zeros((4, 4, 4), np.uint8)
    clean(nothing, Protocol(component_minimum=3), BRATS)
    assert not nothing.any()


def test_et_is_counted_after_small_parts_are_gone() -> None:
    labels = np.zeros((6, 6, 6), np.uint8)
    labels[0, 0, 0] = labels[3, 3, 3] = 3
    labels[3, 3, 4:6] = 2
    clean(labels, Protocol(component_minimum=2, et_minimum=2, et_small="relabel"), BRATS)
    assert labels[3, 3, 3:6].tolist() == [1, 2, 2]
    assert np.count_nonzero(labels) == 3


@pytest.mark.parametrize(("scheme", "empty"), [("brats", "nan"), ("cavity", "brats")])
def test_counts_give_the_dice_of_every_cleaned_label_map(scheme: str, empty: str) -> None:
    what = SCHEMES[scheme]
    for seed in range(3):
        labels, truth = blobs(seed), blobs(seed + 10)
        if seed == 2:
            truth[truth == what.paint["ET"]] = 0
        minima = np.array(PART_MINIMA)
        counts = counted_by_size(labels, truth, minima, what.classes)[None, None]
        assert counts.sum() == labels.size
        for one in cleanups(what)[seed::9]:
            how = Protocol(
                component_minimum=one.component_minimum,
                et_minimum=one.et_minimum,
                et_small=one.et_small,
            )
            cleaned = labels.copy()
            clean(cleaned, how, what)
            expected = score(cleaned[None], truth, scheme=what, empty=empty)["dice"]  # type: ignore[arg-type]
            found = dice(counts, one, what, empty)[0]  # type: ignore[arg-type]
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_a_scheme_without_et_has_no_rule_for_it() -> None:
    assert {one.et_minimum for one in cleanups(SCHEMES["men_rt"])} == {0}
    assert cleanups(BRATS)[0] == Cleanup()


def test_a_minimum_is_a_number_of_voxels() -> None:
    with pytest.raises(ConfigError, match=r"component_minimum=-1 .* keeps every part"):
        Protocol(component_minimum=-1)
    assert Protocol(component_minimum=5).facts()["component_minimum"] == 5
    assert "component_minimum" not in Protocol().facts()
