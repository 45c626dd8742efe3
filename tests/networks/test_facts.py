"""Distributions of the official programs that no trajectory shows (`golden_train/facts.json`)."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bts_lightning import config
from bts_lightning.config.build import build
from bts_lightning.data.transform import Chance, Patch
from bts_lightning.inference.windows import axis_starts
from bts_lightning.losses import RegionLoss, shrunk
from bts_lightning.modalities import COMPLETE, SUBSETS

FACTS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "golden_train" / "facts.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize(
    ("experiment", "epoch", "shares"),
    [
        ("rfnet", 0, [1 / 15] * 4),
        ("mmformer", 3, [1 / 15] * 4),
        ("imfuse", 0, [1 / 15] * 4),
        ("m2ftrans_v1", 5, [1 / 15] * 4),
        ("mfi", 0, [1 / 15] * 4),
        ("robustseg", 0, [1 / 15] * 4),
        ("a2fseg", 0, [1 / 12, 1 / 18, 1 / 12, 0]),
        ("a2fseg", 1, [0, 0, 0, 1]),
        ("uhemis", 0, [1 / 16, 1 / 24, 1 / 16, 1 / 4]),
        ("gmd", 0, [0, 0, 0, 1]),
        ("m3ae", 0, [1 / 16, 1 / 24, 1 / 16, 1 / 4]),
        ("unimrseg", 0, [0, 0, 0, 1]),
        ("shaspec", 319, [0, 0, 0, 1]),
        ("shaspec", 320, [1 / 16, 1 / 24, 1 / 16, 1 / 4]),
        ("lckd", 319, [0, 0, 0, 1]),
        ("lckd", 320, [1 / 12, 1 / 18, 1 / 12, 0]),
        ("metakd", 320, [1 / 16, 1 / 24, 1 / 16, 1 / 4]),
        ("uhved", 7, [1 / 16, 1 / 24, 1 / 16, 1 / 4]),
    ],
)
def test_subsets_are_drawn_as_often(experiment: str, epoch: int, shares: list[float]) -> None:
    scheme = build(config.load([experiment]).data.availability)
    weights = np.array(scheme.weights(epoch))
    expected = [shares[sum(subset) - 1] for subset in SUBSETS]
    np.testing.assert_allclose(weights / weights.sum(), expected, atol=1e-12)
    drawn = Counter(scheme.draw(COMPLETE, 0, epoch, index) for index in range(1500))
    for subset, share in zip(SUBSETS, expected, strict=True):
        assert abs(drawn[subset] / 1500 - share) < 0.04


def of(experiment: str, name: str) -> Any:
    """Build one augmentation of an experiment."""
    return build(config.load([experiment]).data.augment[name])


def test_amoe_changes_all_channels_by_one_pair_of_numbers() -> None:
    image = torch.stack([torch.full((3, 3, 3), value) for value in (1.0, 2.0, 1.0, 2.0)])
    given = Patch(image, image[0].byte(), image != 0)
    scales, shifts = [], []
    intensity = of("amoe_bts", "intensity")
    for seed in range(400):
        one, two, *_ = intensity.apply(given, Chance(seed, "")).image[:, 0, 0, 0]
        scales.append(float(two - one))
        shifts.append(float(2 * one - two))
    for values, low, high in ((scales, 0.9, 1.1), (shifts, -0.1, 0.1)):
        assert low - 1e-5 < min(values) < low + 0.01
        assert high - 0.01 < max(values) < high + 1e-5
    assert abs(np.corrcoef(scales, shifts)[0, 1]) < 0.2


def test_robustseg_learns_from_patches_as_they_are() -> None:
    data = config.load(["robustseg"]).data
    assert data.flip == 0
    assert not data.get("augment")


def test_the_rfnet_family_changes_each_slice_of_each_channel() -> None:
    given = Patch(torch.ones(4, 6, 3, 3), torch.ones(6, 3, 3).byte(), torch.ones(4, 6, 3, 3).bool())
    for experiment in ("rfnet", "mmformer"):
        image = of(experiment, "intensity").apply(given, Chance(0, "")).image
        assert len(image.unique()) == 4 * 6


def test_mmformer_drops_as_often_as_the_official_network() -> None:
    facts = FACTS["mmformer_dropout"]
    torch.manual_seed(0)
    small = ["net.token_width=32", "net.hidden=64", "net.width=2", "net.patch=32"]
    net = build(config.load(["mmformer", *small]).net).train()
    tokens = torch.randn(1, 600, 32)
    for layer in (net.within[0], net.across):
        attention = float((layer.attend(tokens) == 0).double().mean())
        perceptron = float((layer.transform(tokens) == 0).double().mean())
        assert abs(attention - facts["attention branch, share of exact zeros in train mode"]) < 0.01
        assert abs(perceptron - facts["perceptron branch"]) < 0.01
        assert layer.attend[1].dropout.p == facts["attention probabilities"]


def test_a_coarser_label_shows_the_middle_of_its_cell() -> None:
    label = torch.arange(16).byte().view(1, 16, 1, 1).expand(1, 16, 16, 16)
    for factor in (2, 4, 8):
        found = shrunk(label, [16 // factor] * 3)[0, :, 0, 0]
        assert found.tolist() == [factor * i + factor // 2 for i in range(16 // factor)]
    sure = torch.full((1, 3, 8, 8, 8), 20.0)
    odd = torch.zeros(1, 16, 16, 16, dtype=torch.uint8)
    odd[:, 1::2, 1::2, 1::2] = 3
    assert float(RegionLoss()(sure, odd)) < 1e-6


@pytest.mark.parametrize(
    ("experiment", "windows", "average", "weighting", "mirror"),
    [
        ("rfnet", "stepped", "probabilities", "constant", False),
        ("mmformer", "stepped", "probabilities", "constant", False),
        ("robustseg", "stepped", "probabilities", "constant", False),
        ("amoe_bts", "stepped", "logits", "constant", False),
        ("unimrseg", "stepped", "logits", "constant", False),
        ("a2fseg", "even", "probabilities", "gaussian", True),
    ],
)
def test_experiments_segment_as_their_programs(
    experiment: str, windows: str, average: str, weighting: str, mirror: bool
) -> None:
    protocol = build(config.load([experiment]).evaluation)
    found = (protocol.windows, protocol.average, protocol.weighting, protocol.mirror)
    assert found == (windows, average, weighting, mirror)
    assert protocol.overlap == 0.5
    assert protocol.et_minimum == 0


def test_mfi_segments_as_its_program() -> None:
    protocol = build(config.load(["mfi"]).evaluation)
    assert axis_starts(240, 120, protocol.overlap, protocol.windows) == [0, 40, 80, 120]
    assert protocol.size == (120, 120, 120)
    assert (protocol.average, protocol.weighting, protocol.mirror) == ("logits", "constant", True)


@pytest.mark.parametrize(
    ("experiment", "slope"), [("rfnet", 0.0), ("robustseg", 0.0), ("unet_small", 0.01)]
)
def test_first_weights_spread_as_the_official_ones(experiment: str, slope: float) -> None:
    # Kaiming normal for the rectifier in RFNet's family, for a slope of 0.01 in nnU-Net.
    torch.manual_seed(0)
    net = build(config.load([experiment]).net)
    checked = 0
    for module in net.modules():
        if isinstance(module, torch.nn.Conv3d) and module.weight.numel() > 20_000:
            expected = (2 / (1 + slope**2) / module.weight[0].numel()) ** 0.5
            assert float(module.weight.detach().std()) == pytest.approx(expected, rel=0.03)
            checked += 1
    assert checked > 10
