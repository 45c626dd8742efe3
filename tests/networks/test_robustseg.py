"""What is particular to RobustSeg: gates, styles, painted images, and which sizes it takes."""

import math

import pytest
import torch
from torch import Tensor

from bts_lightning.errors import ConfigError
from bts_lightning.networks.backbone import Weigher
from bts_lightning.networks.painting import divergence_from_normal, restyled
from bts_lightning.networks.robustseg import GatedFusion, RobustSeg

ALL = torch.ones(1, 4, dtype=torch.bool)
SOME = torch.tensor([[True, False, True, False]])
# Not needed for a segmentation.
LEARNS_ALONE = ("styles.", "painters.")


@pytest.fixture
def net() -> RobustSeg:
    torch.manual_seed(0)
    return RobustSeg(**RobustSeg.small())


@pytest.fixture
def image() -> Tensor:
    return torch.randn(1, 4, 16, 16, 16, generator=torch.Generator().manual_seed(1))


def test_full_width_has_the_official_number_of_weights() -> None:
    with torch.device("meta"):
        net, small = RobustSeg(), RobustSeg(patch=32)
        alone = RobustSeg(reconstruction_weight=0)
    sizes = {name: p.numel() for name, p in net.named_parameters()}
    assert sum(sizes.values()) == 42_136_376
    assert sum(size for name, size in sizes.items() if name.startswith(LEARNS_ALONE)) == 35_493_028
    assert sum(p.numel() for p in small.parameters()) == 37_763_384
    assert sum(p.numel() for p in alone.parameters()) == 6_643_348


@torch.no_grad()
def test_a_segmentation_needs_neither_styles_nor_painters(net: RobustSeg, image: Tensor) -> None:
    before = net.eval()(image, SOME).logits
    for name, parameter in net.named_parameters():
        if name.startswith(LEARNS_ALONE):
            parameter.fill_(torch.nan)
    assert torch.equal(net(image, SOME).logits, before)


@torch.no_grad()
def test_gates_are_one_number_a_voxel_and_modality() -> None:
    torch.manual_seed(0)
    fusion = GatedFusion(2, Weigher("gates", 0))
    x = torch.randn(1, 4, 2, 3, 3, 3)
    gates = fusion.gate(x.flatten(1, 2)).sigmoid()
    parts = [gates[:, m : m + 1] * x[:, m] for m in range(4)]
    torch.testing.assert_close(fusion(x), fusion.fuse(torch.cat(parts, dim=1)))


def test_style_sets_spread_and_mean() -> None:
    x = 7 + 3 * torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    scale, shift = torch.tensor([[1.0, 2.0, -3.0]] * 2), torch.tensor([[0.0, 5.0, 1.0]] * 2)
    found = restyled(x, scale, shift)
    torch.testing.assert_close(found.mean(dim=(2, 3, 4)), shift, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.std(dim=(2, 3, 4)), scale.abs(), rtol=1e-4, atol=1e-4)


def test_divergence_from_normal() -> None:
    # KL(N(1, 4) ‖ N(0, 1)) = (1 + 4 - 1 - log 4) / 2, and nothing for N(0, 1) itself.
    mean, deviation = torch.tensor([[1.0, 0.0]]), torch.tensor([[-2.0, 1.0]])
    expected = (4 - math.log(4)) / 2
    assert divergence_from_normal(mean, deviation).item() == pytest.approx(expected)
    assert divergence_from_normal(mean, torch.zeros(1, 2)).isfinite().all()


def test_images_are_painted_of_what_the_case_has_from_what_it_keeps(
    net: RobustSeg, image: Tensor
) -> None:
    net.train()
    image.requires_grad_()
    for available, seen in ((SOME, [0, 2]), (torch.tensor([[True, True, True, False]]), [0, 1, 2])):
        image.grad = None
        output = net(image, SOME, available)
        sum(output.penalties.values()).backward()  # type: ignore[union-attr]
        assert image.grad is not None
        assert image.grad.flatten(2).any(dim=2)[0].nonzero().flatten().tolist() == seen
    assert set(output.penalties) == {"reconstruction", "kl"}


def test_error_is_the_sum_over_modalities_of_the_mean_over_voxels(net: RobustSeg) -> None:
    for painter in net.painters:
        torch.nn.init.zeros_(painter.enlarge[-1].weight)  # paints nothing at all
        torch.nn.init.zeros_(painter.enlarge[-1].bias)
    image = torch.full((1, 4, 16, 16, 16), -2.0)
    image[:, 2] = 3.0
    penalties = net.train()(image, SOME, ALL).penalties
    assert penalties["reconstruction"].item() == pytest.approx(0.1 * (2 + 2 + 3 + 2), rel=1e-5)


def test_prediction_does_not_learn_to_paint(net: RobustSeg, image: Tensor) -> None:
    net.train()(image, SOME, ALL).logits.square().mean().backward()
    for name, parameter in net.named_parameters():
        assert (parameter.grad is None) == name.startswith(LEARNS_ALONE), name


def test_training_takes_the_patch_alone_and_evaluation_any_multiple(net: RobustSeg) -> None:
    other = torch.zeros(1, 4, 24, 16, 16)
    assert net.eval()(other, ALL).logits.shape == (1, 4, 24, 16, 16)
    with pytest.raises(ValueError, match=r"learn from \(16, 16, 16\) voxels, got \(24, 16, 16\)"):
        net.train()(other, ALL)
    assert not RobustSeg(width=4, reconstruction_weight=0).train()(other, ALL).penalties


@pytest.mark.parametrize("patch", [8, 20])
def test_impossible_patches_are_refused(patch: int) -> None:
    with pytest.raises(ConfigError, match="multiple of 8, 16 or more"):
        RobustSeg(patch=patch)
