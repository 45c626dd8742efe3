"""Weights of modalities over regions: what their means must equal, however windows lie."""

from typing import Any

import numpy as np
import pytest
import torch

from bts_lightning.inference import Importance, Protocol, each_subset
from bts_lightning.losses import RegionLoss
from bts_lightning.modalities import SUBSETS, Subset
from bts_lightning.networks.backbone import Features, Output, Weigher
from tests.inference.parts import ALL, Blur, case, make


class Weighing(Blur):
    """Weighs each modality by the share of its absolute value, voxel by voxel, without context."""

    most = 15

    def __init__(self, channels: int = 3, kernel: int = 1) -> None:
        super().__init__(channels, kernel)
        self.attention = Weigher("attention", 0)
        self.gates = [Weigher("gates", 1, m) for m in range(4)]

    def weighers(self) -> tuple[Weigher, ...]:
        return (self.attention, *self.gates)

    def encode_levels(self, image: torch.Tensor, present: torch.Tensor) -> tuple[torch.Tensor, ...]:
        for m, weigher in enumerate(self.gates):
            if weigher.listener:
                x = image[:, m : m + 1].abs()
                weigher.listener(torch.stack([x, 2 * x], dim=2))  # B 1 E D H W
        return (*super().encode_levels(image, present), image.unsqueeze(2))

    def decode(self, features: Features) -> Output:
        x = features.selected(1).squeeze(2).abs() + 1e-3
        shares = x * features.present[1].view(-1, 4, 1, 1, 1)
        if self.attention.listener:
            self.attention.listener(shares / shares.sum(dim=1, keepdim=True))
        if len(x) > self.most:
            raise torch.OutOfMemoryError("no room")
        return super().decode(features)


class Forgetful(Weighing):
    most = 2


def heard(
    net: Blur, image: np.ndarray, regions: np.ndarray, subsets: Any = SUBSETS, **words: Any
) -> dict[tuple[str, int], np.ndarray]:
    importance = Importance(net, regions)
    protocol = Protocol(window=8, **words)
    for _ in each_subset(net, RegionLoss(), image, ALL, protocol, subsets, importance=importance):
        pass
    assert not net.is_heard
    return dict(importance.means())


def regions_in(*size: int) -> np.ndarray:
    """Two regions, one of them at the border, and one that is empty."""
    regions = np.zeros((3, *size), np.bool_)
    regions[0, 2:9, 3:11, 1:7] = True
    regions[1, :2, -3:, :] = True
    return regions


def shares(image: np.ndarray, subset: Subset) -> np.ndarray:
    x = (np.abs(image.astype(np.float64)) + 1e-3) * np.array(subset).reshape(4, 1, 1, 1)
    return np.asarray(x / x.sum(axis=0))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Weighing, {}),
        (Weighing, {"weighting": "constant", "overlap": 0.7}),
        (Weighing, {"mirror": True}),
        (Weighing, {"batch_windows": 3, "batch_subsets": 4}),
        (Weighing, {"naive": True}),
        (Forgetful, {"batch_subsets": 8}),
    ],
)
def test_weights_without_context_have_the_mean_over_their_region(
    kind: type[Weighing], words: dict[str, Any]
) -> None:
    image, regions = case(13, 12, 9), regions_in(13, 12, 9)
    some = SUBSETS if "mirror" not in words else SUBSETS[::7]
    found = heard(make(kind), image, regions, some, **words)
    attention, gates = found["attention", 0], found["gates", 1]
    assert attention.shape == (len(some), 3, 4, 1)
    for s, subset in enumerate(some):
        share = shares(image, subset)
        for r in range(2):
            expected = share[:, regions[r]].mean(axis=1)
            np.testing.assert_allclose(attention[s, r, :, 0], expected, atol=1e-5)
            own = np.abs(image[:, regions[r]].astype(float)).mean(axis=1) * np.array(subset)
            np.testing.assert_allclose(gates[s, r], np.stack([own, 2 * own], 1), rtol=1e-4)
        absent = ~np.array(subset)
        assert (attention[s, :2, absent] == 0).all()
        assert (gates[s, :2, absent] == 0).all()
    np.testing.assert_allclose(attention[:, :2].sum(axis=2), 1, atol=1e-5)
    assert np.isnan(attention[:, 2]).all()  # no voxel, no weight
    assert np.isnan(gates[:, 2]).all()


def test_coarse_weights_count_for_all_voxels_that_they_cover() -> None:
    class Coarse(Weighing):
        def decode(self, features: Features) -> Output:
            tell, self.attention.listener = self.attention.listener, None
            if tell:
                steps = torch.tensor([1.0, 0.0]).repeat_interleave(4)[::4]  # of the depth's halves
                half = steps.view(1, 1, 2, 1, 1).expand(len(features.real), 4, 2, 1, 1)
                tell(half)
            output = super().decode(features)
            self.attention.listener = tell
            return output

    regions = np.zeros((1, 8, 8, 8), np.bool_)
    regions[0, 3:7, 2, 2] = True  # one plane in the first half, three in the second
    found = heard(make(Coarse), case(8, 8, 8), regions, [ALL], weighting="constant")
    np.testing.assert_allclose(found["attention", 0], 0.25)


def test_nothing_is_heard_where_no_window_shows_a_region() -> None:
    net = make(Weighing)
    assert heard(net, case(8, 8, 8), np.zeros((3, 8, 8, 8), np.bool_)) == {}
