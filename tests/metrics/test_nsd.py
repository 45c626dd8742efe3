"""Voxel NSD: answers known by hand, and its definition written with SciPy's distance maps."""

import numpy as np
import pytest
from scipy.ndimage import binary_erosion, distance_transform_edt

from bts_lightning.metrics.score import score
from bts_lightning.metrics.table import METRICS
from bts_lightning.modalities import REGIONS
from tests.metrics.parts import speckled

ONLY = [METRICS["nsd"]]


def nsd(found: np.ndarray, truth: np.ndarray, spacing=(1.0, 1.0, 1.0), empty="brats") -> float:
    """Score a mask of ET."""
    labels = [(3 * mask).astype(np.uint8) for mask in (found, truth)]
    scores = score(labels[0][None], labels[1], spacing, metrics=ONLY, empty=empty)
    return float(scores["nsd"][0, 2])


def by_definition(found: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...]) -> float:
    borders = [mask & ~binary_erosion(mask, border_value=0) for mask in (found, truth)]
    # Distance of every voxel to each border, in mm.
    to_found, to_truth = (distance_transform_edt(~border, sampling=spacing) for border in borders)
    shares = (to_truth[borders[0]] <= 1).mean(), (to_found[borders[1]] <= 1).mean()
    return sum(shares) / 2


@pytest.mark.parametrize(
    "spacing", [(1.0, 1.0, 1.0), (3.0, 0.9375, 0.9375), (0.5, 2.0, 1.1), (0.3, 0.4, 0.5)]
)
def test_nsd_equals_its_definition_on_random_masks(spacing: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(0)
    ours, reference = [], []
    for _ in range(25):
        truth, *predicted = speckled(rng, masks=4)
        scores = score(np.stack(predicted), truth, spacing, metrics=ONLY)["nsd"]
        for s, p in enumerate(predicted):
            for r, values in enumerate(REGIONS.values()):
                a, b = np.isin(p, values), np.isin(truth, values)
                if a.any() and b.any():
                    ours.append(scores[s, r])
                    reference.append(by_definition(a, b, spacing))
    assert len(ours) > 150
    assert 0 < np.mean(reference) < 1
    np.testing.assert_allclose(ours, reference, rtol=1e-12)


def plate(at: int) -> np.ndarray:
    mask = np.zeros((8, 8, 8), bool)
    mask[at] = True
    return mask


@pytest.mark.parametrize(("spacing", "expected"), [(0.5, 1), (1.0, 1), (1.01, 0)])
def test_plates_one_step_apart_agree_up_to_one_millimetre(spacing: float, expected: int) -> None:
    assert nsd(plate(2), plate(3), (spacing, 1.0, 1.0)) == expected


def test_each_surface_counts_its_own_share() -> None:
    # One voxel of the truth's two is met, and the only one of the prediction: (1/1 + 1/2) / 2.
    truth, found = np.zeros((2, 8, 8, 8), bool)
    found[0, 0, 0] = truth[0, 0, 0] = truth[7, 7, 7] = True
    assert nsd(found, truth) == nsd(truth, found) == 0.75


def test_rounding_of_a_turned_affine_costs_nothing() -> None:
    assert nsd(plate(2), plate(3), (1.0000001, 1.0, 1.0)) == 1


def test_empty_regions_are_right_or_wrong_as_a_whole() -> None:
    nothing = np.zeros((8, 8, 8), bool)
    assert nsd(nothing, nothing) == 1
    assert nsd(nothing, plate(2)) == nsd(plate(2), nothing) == 0
    assert np.isnan(nsd(nothing, plate(2), empty="nan"))
