"""What is particular to the early-fusion U-Net."""

import pytest
import torch

from bts_lightning.networks.unet import UNet


@pytest.mark.parametrize(
    ("width", "poolings", "limit", "millions"),
    [(32, 5, 320, 31.20), (32, 4, 320, 16.55), (16, 4, 256, 5.65)],
)
def test_sizes_are_the_published_ones(
    width: int, poolings: int, limit: int, millions: float
) -> None:
    with torch.device("meta"):
        net = UNet(width=width, poolings=poolings, width_limit=limit, out_channels=4)
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 2) == millions


def test_features_are_the_image_itself() -> None:
    image, present = torch.randn(1, 4, 16, 16, 16), torch.tensor([[True, False, True, True]])
    level = UNet(**UNet.small()).encode(image, present).levels[0].squeeze(2)
    assert torch.equal(level[:, 2:], image[:, 2:])
    assert not level[:, 1].any()


@torch.no_grad()
def test_availability_channels_tell_absent_from_dark() -> None:
    image = torch.randn(1, 4, 16, 16, 16)
    image[:, 1] = 0
    present = torch.tensor([[True, True, True, True], [True, False, True, True]])
    for knows in (False, True):
        torch.manual_seed(0)
        net = UNet(**UNet.small(), availability_channels=knows).eval()
        dark, absent = (net(image, row[None]).logits for row in present)
        assert torch.equal(dark, absent) != knows


def test_deep_supervision_weighs_coarser_heads_less() -> None:
    image, present = torch.randn(1, 4, 16, 16, 16), torch.ones(1, 4, dtype=torch.bool)
    output = UNet(**UNet.small()).train()(image, present)
    sizes = [a.logits.shape[-1] for a in output.auxiliary]
    assert (output.logits.shape[-1], sizes) == (16, [8, 4])
    assert output.weight == pytest.approx(2 / 3)
    assert [a.weight for a in output.auxiliary] == pytest.approx([1 / 3, 0])


def test_without_deep_supervision_there_is_one_head() -> None:
    net = UNet(**UNet.small(), deep_supervision=False).train()
    output = net(torch.randn(1, 4, 16, 16, 16), torch.ones(1, 4, dtype=torch.bool))
    assert (output.weight, output.auxiliary) == (1, ())
    assert len(net.expand.heads) == 1
