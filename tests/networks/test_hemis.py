"""What is particular to U-HeMIS and U-HVED: their fusions and penalties, computed by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bts_lightning.modalities import SUBSETS
from bts_lightning.networks.backbone import Features
from bts_lightning.networks.hemis import UHeMIS
from bts_lightning.networks.uhved import (
    UHVED,
    divergence,
    divergence_from_prior,
    experts,
    posterior,
    subset_divergence,
)
from tests.networks.parts import check_that_a_fusion_treats_modalities_alike


def scalars(*values: float) -> Tensor:
    """Make B×M×1×1×1×1 features of one sample."""
    return torch.tensor(values).view(1, len(values), 1, 1, 1, 1)


def gaussians(*pairs: tuple[float, float]) -> Tensor:
    """Make the (mean, log-variance) features of one sample."""
    return torch.tensor(pairs).view(1, len(pairs), 2, 1, 1, 1)


def flags(*names: int) -> Tensor:
    return torch.tensor([[m in names for m in range(4)]])


def test_weights_of_the_published_sizes() -> None:
    hemis, hved = UHeMIS(), UHVED()
    assert sum(p.numel() for p in hved.parameters()) == 1_250_552
    # 0.566 M in all and 0.112 M an encoder, says the construction from the paper.
    assert sum(p.numel() for p in hemis.parameters()) == 565_888
    assert sum(p.numel() for p in hemis.encoders[0].parameters()) == 111_776


@pytest.mark.parametrize("kind", [UHeMIS, UHVED])
def test_branches_go_with_their_modality(kind: type[Any]) -> None:
    torch.manual_seed(0)
    check_that_a_fusion_treats_modalities_alike(kind(width=4).eval())


@pytest.mark.parametrize(
    ("present", "legacy", "expected"),
    [
        (flags(0, 1, 3), False, (3.0, (4 + 0 + 4) / 3)),  # 1, 3, 5
        (flags(1), False, (3.0, 0.0)),
        (flags(0, 1, 3), True, (9 / 4, (1.25**2 + 0.75**2 + 2.25**2 + 2.75**2) / 3)),
    ],
)
def test_hemis_fuses_mean_and_variance(
    present: Tensor, legacy: bool, expected: tuple[float, float]
) -> None:
    net = UHeMIS(**UHeMIS.small(), legacy_zeros=legacy)
    x = scalars(1.0, 3.0, math.nan, 5.0)
    fused = net._fuse(Features((x,), (present,), present), 0)
    assert fused.flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize("training", [False, True])
def test_encoder_runs_for_the_samples_that_have_its_modality(training: bool) -> None:
    net = UHeMIS(**UHeMIS.small()).train(training)
    seen: list[int] = []
    for encoder in net.encoders:
        encoder.register_forward_hook(lambda _, images, __: seen.append(len(images[0])))
    net(torch.randn(2, 4, 16, 16, 16), torch.cat([flags(1), flags(1, 3)]))
    assert seen == [2, 1]


def test_product_of_gaussians_with_the_prior() -> None:
    # N(3, 1) and N(1, 1/2) with N(0, 1): precision 1 + 2 + 1, mean (3 + 2) / 4.
    x = gaussians((3.0, 0.0), (1.0, -math.log(2)), (math.nan, math.nan), (9.0, 9.0))
    mean, precision = posterior(*experts(x, flags(0, 1)), flags(0, 1))
    assert precision.item() == pytest.approx(4)
    assert mean.item() == pytest.approx(5 / 4)


def test_extreme_variances_stay_finite() -> None:
    x = gaussians((1.0, -80.0), (1.0, 80.0), (0.0, 0.0), (0.0, 0.0)).half().requires_grad_()
    mean, precision = posterior(*experts(x, flags(0, 1)), flags(0, 1))
    assert mean.item() == pytest.approx(1)
    assert precision.item() == pytest.approx(1e7, rel=1e-3)
    (mean + precision).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_divergence_of_gaussians() -> None:
    one, other = torch.tensor([[1.0]]), torch.tensor([[0.0]])
    # KL(N(1, 1/2) ‖ N(0, 1)) = (log 2 + 1/2 + 1 - 1) / 2
    expected = (math.log(2) + 0.5) / 2
    narrow, prior = (one, torch.tensor([[2.0]])), (other, torch.tensor([[1.0]]))
    assert divergence(narrow, prior).item() == pytest.approx(expected)
    assert divergence_from_prior(narrow).item() == pytest.approx(expected)
    assert divergence(narrow, narrow).item() == pytest.approx(0, abs=1e-6)


def test_divergence_runs_over_subsets_of_what_is_real() -> None:
    # Two real modalities, N(0, 1) each: posteriors N(0, 1/3) of both, N(0, 1/2) of one.
    x = gaussians((0.0, 0.0), (math.nan, 0.0), (0.0, 0.0), (math.nan, 0.0))

    def kl(ours: float, theirs: float) -> float:
        return 0.5 * (theirs / ours - math.log(theirs / ours) - 1)

    between = kl(3, 2)  # the same for both proper subsets
    to_prior = (kl(3, 1) + 2 * kl(2, 1)) / 3
    value = subset_divergence(x, flags(0, 2), flags(0, 2)).item()
    assert value == pytest.approx(between + to_prior, rel=1e-5)
    # From one of them: 1/2 to 1/3, and nothing to itself nor to the other; two are proper.
    value = subset_divergence(x, flags(0, 2), flags(0)).item()
    assert value == pytest.approx(kl(2, 3) / 2 + to_prior, rel=1e-5)


def test_divergence_starts_from_what_is_kept_or_from_all_that_is_there() -> None:
    features = trained().encode(torch.randn(1, 4, 16, 16, 16), flags(0, 1, 2, 3))
    kept, available = (
        trained(kl_from=start).decode(features.restrict(flags(0))).penalties["kl"]
        for start in ("kept", "available")
    )
    assert kept > available


def trained(**options: Any) -> UHVED:
    torch.manual_seed(0)
    return UHVED(**UHVED.small(), **options).train()


def test_penalties_look_at_dropped_modalities_only_when_they_may() -> None:
    image, present = torch.randn(1, 4, 16, 16, 16), flags(1, 2)
    net = trained()
    image.requires_grad_()
    for available, seen in ((flags(1, 2), [1, 2]), (flags(0, 1, 2), [0, 1, 2])):
        image.grad = None
        penalties = net(image, present, available).penalties
        assert set(penalties) == {"kl", "reconstruction"}
        sum(penalties.values()).backward()  # type: ignore[union-attr]
        assert image.grad is not None
        assert image.grad.flatten(2).any(dim=2)[0].nonzero().flatten().tolist() == seen


def test_reconstruction_is_the_mean_over_real_voxels() -> None:
    net = trained(kl_weight=0)
    for decoder in net.reconstructions:
        torch.nn.init.zeros_(decoder.head.weight)  # reconstructs nothing at all
    image = torch.full((1, 4, 16, 16, 16), 2.0)
    image[:, 3] = 7.0
    penalties = net(image, flags(0, 1)).penalties
    assert penalties["reconstruction"].item() == pytest.approx(0.1 * 4)


def test_penalties_can_be_left_out() -> None:
    net = trained(kl_weight=0, reconstruction_weight=0)
    assert net(torch.randn(1, 4, 16, 16, 16), flags(0)).penalties == {}
    assert len(net.reconstructions) == 0


def test_training_samples_and_evaluation_does_not() -> None:
    net, image = trained(), torch.randn(1, 4, 16, 16, 16)
    assert not torch.equal(net(image, flags(0)).logits, net(image, flags(0)).logits)
    net.fusion = "mean"
    mean = net(image, flags(0)).logits
    torch.testing.assert_close(net.eval()(image, flags(0)).logits, mean)


@torch.no_grad()
def test_subsets_of_a_case_share_the_factors_of_their_gaussians() -> None:
    net = UHVED(width=4).eval()
    features = net.encode(torch.randn(1, 4, 16, 16, 16), torch.tensor([[True, False, True, True]]))
    for level in features.levels:
        level[:, 1] = float("nan")  # T1c was never there
    subsets = torch.tensor([s for s in SUBSETS if not s[1]])
    together = net.decode_subsets(features, subsets).flatten(0, 1)
    alone = [net.decode(features.restrict(subset.view(1, 4))).logits for subset in subsets]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)
