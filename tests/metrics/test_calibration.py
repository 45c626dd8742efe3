"""Calibration of probabilities, by hand on a few voxels and on synthetic ones."""

import numpy as np
import pytest
import torch

from bts_lightning.losses.segmentation import LabelLoss, RegionLoss, SeparateLabelLoss
from bts_lightning.metrics.calibration.counts import BINS, aurc, expected_error
from bts_lightning.metrics.calibration.tally import Tally
from bts_lightning.metrics.score import score

MM = (1.0, 1.0, 1.0)


def measured(truth, probabilities, predicted=None, brain=None, spacing=MM):
    tally = Tally(truth, truth == truth if brain is None else brain, spacing)
    predicted = np.zeros_like(truth) if predicted is None else predicted
    tally.add(predicted, np.asarray(probabilities, np.float32))
    return score(predicted[None], truth, spacing, calibration=tally.counts())


def test_four_voxels_by_hand() -> None:
    truth = np.array([[[3, 3, 0, 0]]], np.uint8)
    p = np.array([[[0.9, 0.62, 0.61, 0.1]]])
    got = measured(truth, [p, p, p], predicted=np.array([[[3, 0, 0, 0]]], np.uint8))
    # The two in the middle share a bin: |1.23 - 1| in place of |0.62 - 1| + |0.61 - 0|.
    np.testing.assert_allclose(got["ece"], (0.1 + 0.23 + 0.1) / 4, rtol=1e-6)
    np.testing.assert_allclose(got["brier"], (0.01 + 0.38**2 + 0.61**2 + 0.01) / 4, rtol=1e-6)
    bits = -(0.9 * np.log2(0.9) + 0.1 * np.log2(0.1))
    np.testing.assert_allclose(got["entropy"], bits, rtol=1e-6)


def test_the_band_ends_five_mm_from_the_surface_and_at_the_brain() -> None:
    truth = np.zeros((1, 1, 20), np.uint8)
    truth[..., 8] = 3
    p = np.zeros((3, 1, 1, 20))
    p[..., 8] = 1
    for x, is_inside in ((13, True), (14, False), (3, True), (2, False)):
        wrong = p.copy()
        wrong[..., x] = 1
        got = measured(truth, wrong)
        np.testing.assert_allclose(got["brier_band"], is_inside / 11)
        np.testing.assert_allclose(got["brier"], 1 / 20)
    brain = np.arange(20).reshape(1, 1, 20) < 10
    np.testing.assert_allclose(measured(truth, wrong * 0, brain=brain)["brier_band"], 1 / 7)
    # Of 2 mm, only two on each side.
    np.testing.assert_allclose(measured(truth, wrong * 0, spacing=(1, 1, 2))["brier_band"], 1 / 5)


def test_the_inside_of_a_large_region_is_far_from_its_surface() -> None:
    truth = np.full((15, 15, 15), 3, np.uint8)
    p = np.ones((3, *truth.shape))
    p[:, 7, 7, 7] = 0  # 7 mm from every surface
    got = measured(truth, p)
    assert (got["brier_band"] == 0).all()
    assert (got["brier"] > 0).all()


def test_what_is_empty_has_no_value() -> None:
    empty = np.zeros((4, 4, 4), np.uint8)
    got = measured(empty, np.zeros((3, 4, 4, 4)))
    for name in ("ece_band", "brier_band", "entropy"):
        assert np.isnan(got[name]).all()
    assert (got["ece"] == 0).all()


def test_bins_end_where_probabilities_do() -> None:
    truth = np.array([[[3, 0, 0]]], np.uint8)
    tally = Tally(truth, truth < 9, MM)
    tally.add(truth, np.broadcast_to(np.float32([1, 0, np.nan]), (3, 1, 1, 3)))
    voxels = tally.counts().bins[0, :, 1, :, 0]
    assert voxels[:, BINS - 1].tolist() == [1, 1, 1]
    assert voxels[:, 0].tolist() == [2, 2, 2]


def test_the_surer_the_larger_the_error() -> None:
    random = np.random.default_rng(0)
    logit = random.normal(0, 2, 200_000)
    there = random.random(logit.size) < 1 / (1 + np.exp(-logit))
    errors = []
    for sharper in (1.0, 1.5, 2.0, 3.0):
        p = 1 / (1 + np.exp(-sharper * logit))
        places = np.minimum((p * BINS).astype(int), BINS - 1)
        bins = [np.bincount(places, w, BINS) for w in (np.ones_like(p), p, there)]
        errors.append(float(expected_error(np.stack(bins, axis=-1))))
    assert errors[0] < 0.005
    assert errors == sorted(errors)
    assert errors[-1] > 0.05


def test_risk_and_coverage_by_hand() -> None:
    risk = np.array([0.0, 0.1, 0.8])
    assert aurc(np.array([3.0, 2.0, 1.0]), risk) == pytest.approx((0 + 0.05 + 0.3) / 3)
    assert aurc(np.array([1.0, 2.0, 3.0]), risk) == pytest.approx((0.8 + 0.45 + 0.3) / 3)
    # Nobody is surer than another: the mean, whatever the order of the cases.
    assert aurc(np.zeros(3), risk) == pytest.approx(0.3)


def test_regions_are_sums_of_labels() -> None:
    p = torch.tensor([0.1, 0.2, 0.3, 0.4]).view(1, 4, 1, 1, 1)
    regions = LabelLoss().of_regions(p).flatten().tolist()
    assert regions == pytest.approx([0.9, 0.6, 0.4])
    # Sigmoids of their own do not add up to 1.
    assert SeparateLabelLoss().of_regions(p).flatten().tolist() == pytest.approx([0.4, 0.4, 0.4])
    assert RegionLoss().of_regions(p[:, 1:]).flatten().tolist() == pytest.approx([0.2, 0.3, 0.4])
