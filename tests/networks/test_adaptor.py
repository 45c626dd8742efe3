"""The input adaptor of early fusion."""

import math
from typing import Any

import pytest
import torch

from bts_lightning.errors import ConfigError
from bts_lightning.networks.adaptor import InputAdaptor
from bts_lightning.networks.rfnet import RFNet
from bts_lightning.networks.unet import UNet
from tests.distillation.parts import COMPLETE


def test_the_adaptor_pulls_each_map_to_a_mix_that_does_not_follow() -> None:
    net = InputAdaptor(UNet(width=4, poolings=2))
    maps = torch.tensor([0.0, 1.0, 2.0, 5.0]).view(1, 4, 1, 1, 1, 1).requires_grad_()
    present = torch.ones(1, 4, dtype=torch.bool)
    value = net.pull(maps, present)
    # The mean is 2: squares 4, 1, 0, 9.
    assert value.item() == pytest.approx(0.5 * 14 / 4)
    value.backward()
    assert maps.grad is not None
    # Of each map alone, (f - p) / 4, as the anchor stands still.
    assert maps.grad.flatten().tolist() == pytest.approx([-0.5, -0.25, 0.0, 0.75])
    # Equal weights are where the weights want to be.
    assert net.theta.grad is not None
    assert net.theta.grad.abs().max() < 1e-6
    net.theta.data[3] = 1.0
    net.theta.grad = None
    net.pull(maps, present).backward()
    assert net.theta.grad is not None
    assert net.theta.grad[3] > 0


def test_the_adaptor_aligns_what_is_present() -> None:
    net = InputAdaptor(UNet(width=4, poolings=2))
    maps = torch.tensor([0.0, 2.0, math.nan, math.nan]).view(1, 4, 1, 1, 1, 1)
    present = torch.tensor([[True, True, False, False]])
    assert net.pull(maps, present).item() == pytest.approx(0.5 * (1 + 1) / 2)
    assert net.mix(maps, present).item() == 1.0


@pytest.mark.parametrize("mixing", ["grouped", "dense"])
def test_an_adapted_network_obeys_the_laws(mixing: Any) -> None:
    torch.manual_seed(0)
    net = InputAdaptor(UNet(width=4, poolings=2, deep_supervision=False), mixing=mixing)
    for parameter in net.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    own = sum(p.numel() for p in net.adapt.parameters()) + net.theta.numel()
    assert own == {"grouped": 2 * (4 * 27 + 8) + 4, "dense": 880 + 4}[mixing]
    image = torch.randn(2, 4, 16, 16, 16)
    output = net(image, COMPLETE)
    (output.logits.mean() + output.penalties["align"]).backward()
    assert all(p.grad is not None for p in net.parameters())
    net.eval()
    present = torch.tensor([[True, False, True, False], [False, True, True, True]])
    spoilt = torch.where(present.view(2, 4, 1, 1, 1), image, math.nan)
    with torch.no_grad():
        clean = net(image, present).logits
        assert torch.equal(net(spoilt, present).logits, clean)
        once = net.decode(net.encode(image, COMPLETE).restrict(present)).logits
        torch.testing.assert_close(once, clean)
        for row in range(2):
            alone = net(image[row : row + 1], present[row : row + 1]).logits
            torch.testing.assert_close(alone[0], clean[row])


def test_only_early_fusion_takes_an_adaptor() -> None:
    with pytest.raises(ConfigError, match=r"RFNet encodes each modality alone.*medmap"):
        InputAdaptor(RFNet(width=4))
