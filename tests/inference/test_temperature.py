"""A temperature makes sure what is unsure, and the fitted one is known for made-up logits."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bts_lightning.errors import ConfigError
from bts_lightning.inference import Protocol, each_subset
from bts_lightning.inference.temperature import fit, sample
from bts_lightning.losses import LabelLoss, RegionLoss
from bts_lightning.losses.segmentation import SegmentationLoss
from bts_lightning.metrics.calibration.counts import ALL as BRAIN
from bts_lightning.metrics.calibration.tally import Tally
from bts_lightning.modalities import parse_subset
from tests.inference.parts import ALL, averaged_over, case, make

COUNT = 40_000


def calibrated(kind: type[SegmentationLoss]) -> tuple[Tensor, Tensor]:
    """Draw logits, and labels with just the probabilities that these say."""
    random = torch.Generator().manual_seed(0)
    drawn = torch.rand(COUNT, generator=random)
    if kind is LabelLoss:
        logits = 2 * torch.randn(4, COUNT, generator=random)
        sums = logits.softmax(dim=0).cumsum(dim=0)
        return logits, (drawn > sums[:3]).sum(dim=0).to(torch.uint8)
    logits = (2 * torch.randn(3, COUNT, generator=random)).sort(dim=0, descending=True).values
    there = (drawn < logits.sigmoid()).sum(dim=0)  # nested: WT, then TC, then ET
    return logits, torch.tensor([0, 2, 1, 3], dtype=torch.uint8)[there]


@pytest.mark.parametrize("kind", [RegionLoss, LabelLoss])
def test_the_temperature_of_calibrated_logits_is_one(kind: type[SegmentationLoss]) -> None:
    temperature, before, after = fit(kind(), *calibrated(kind))
    assert temperature == pytest.approx(1, abs=0.02)
    assert after <= before


@pytest.mark.parametrize("kind", [RegionLoss, LabelLoss])
def test_the_surer_the_larger_temperature_and_error(kind: type[SegmentationLoss]) -> None:
    loss, (logits, labels) = kind(), calibrated(kind)
    truth = labels.numpy().reshape(1, 1, -1)
    errors, temperatures = [], []
    for sharper in (1.0, 1.5, 2.0, 4.0):
        p = loss.of_regions(loss.probabilities((sharper * logits)[None, :, None, None]))
        tally = Tally(truth, truth < 9, (1, 1, 1))
        tally.add(truth, p[0].numpy())
        errors.append(tally.counts().errors[0, :, BRAIN])
        temperature, before, after = fit(loss, sharper * logits, labels)
        temperatures.append(temperature / sharper)
        assert after < before or sharper == 1
    assert (np.diff(errors, axis=0) > 0).all()
    # Whatever was multiplied is divided again.
    np.testing.assert_allclose(temperatures, temperatures[0], rtol=2e-4)


def test_logits_of_every_window_are_divided() -> None:
    net, loss, image = make(), RegionLoss(), case(8, 8, 8)
    plain = averaged_over(net, loss, image, Protocol(window=8), ALL)
    warm = averaged_over(net, loss, image, Protocol(window=8, temperature=2.0), ALL)
    np.testing.assert_allclose(warm, torch.from_numpy(plain).logit().div(2).sigmoid(), atol=1e-6)
    for protocol in (Protocol(window=8), Protocol(window=8, temperature=2.0)):
        ((labels, _),) = each_subset(net, loss, image, ALL, protocol, [ALL])
        np.testing.assert_array_equal(labels, loss.labels(torch.from_numpy(plain)[None])[0])


def test_what_is_fitted_on_are_the_averaged_logits_of_the_brain() -> None:
    net, loss, image = make(), RegionLoss(), case(12, 8, 8)
    image[:, :, :, 4:] = 0
    # Of an absent modality nothing is asked, and a window that shows a subset nothing says nothing.
    image[3] = np.nan
    image[0, 4:] = 0
    available = (True, True, True, False)
    label = np.random.default_rng(0).integers(0, 4, (12, 8, 8)).astype(np.uint8)
    label[..., 4:] = 0
    protocol = Protocol(window=4, overlap=0, temperature=3.0)
    subsets = [parse_subset("t1"), parse_subset("t1c+t2")]
    some = list(sample(net, loss, image, available, label, protocol, subsets, 10**6))
    by_logits = Protocol(window=4, overlap=0, average="logits")
    for (logits, labels), subset, depth in zip(some, subsets, (4, 12), strict=True):
        p = averaged_over(net, loss, image, by_logits, subset, available)[:, :depth, :, :4]
        np.testing.assert_allclose(logits.sigmoid(), p.reshape(3, -1), atol=1e-6)
        np.testing.assert_array_equal(labels, label[:depth, :, :4].ravel())
    few = list(sample(net, loss, image, available, label, protocol, subsets[1:], 10))
    again = list(sample(net, loss, image, available, label, protocol, subsets[1:], 10))
    assert few[0][0].shape == (3, 10)
    assert few[0][0].equal(again[0][0])


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_is_a_positive_number(wrong: float) -> None:
    with pytest.raises(ConfigError, match="neither fitted nor a positive number"):
        Protocol(temperature=wrong)


def test_a_training_knows_no_fitted_temperature() -> None:
    with pytest.raises(ConfigError, match="a training has none yet"):
        Protocol(temperature="fitted").admit(make())
