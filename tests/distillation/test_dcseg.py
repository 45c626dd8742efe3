from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from bts_lightning.distillation.dcseg import DCSegTask
from bts_lightning.errors import ConfigError
from bts_lightning.losses import LabelLoss
from bts_lightning.losses.contrast import (
    TEMPERATURE,
    anatomy_contrast,
    contrast,
    modality_contrast,
    similarities,
)
from bts_lightning.networks.backbone import Backbone
from bts_lightning.networks.imfuse import IMFuse
from bts_lightning.networks.m2ftrans import M2FTrans
from bts_lightning.networks.mmformer import MMFormer
from bts_lightning.networks.painting import Painting
from bts_lightning.networks.rfnet import RFNet
from bts_lightning.networks.robustseg import RobustSeg
from bts_lightning.networks.unet import UNet
from tests.networks.parts import batch_for

ALL, SOME = [True] * 4, [True, False, True, True]


def task(net: Backbone | None = None) -> DCSegTask:
    torch.manual_seed(0)
    host = net or RFNet(width=4)
    painting = partial(Painting, styles=8)
    return DCSegTask(host, loss=LabelLoss(), painting=painting, optimizer=torch.optim.Adam)


def maps(count: int = 4) -> Tensor:
    draw = torch.Generator().manual_seed(count)
    return torch.randn(1, count, 3, 7, 6, 8, generator=draw)


def test_similarities_are_those_of_torchmetrics() -> None:
    x = maps().flatten(0, 1).double()
    first, second = torch.triu_indices(4, 4, offset=1)
    found = similarities(x, torch.ones(4, dtype=torch.bool))
    whole = float(x.max() - x.min())
    expected = structural_similarity_index_measure(
        x[first], x[second], reduction="none", data_range=whole
    )
    assert torch.equal(found, found.T)
    torch.testing.assert_close(found[first, second], expected, rtol=1e-9, atol=1e-12)
    assert torch.equal(found.diagonal(), torch.ones(4, dtype=torch.double))


def test_pairs_of_one_group_should_be_alike_and_no_others() -> None:
    real, group = torch.ones(3, dtype=torch.bool), torch.tensor([0, 0, 1])
    right = torch.tensor([[1.0, 1.0, -1.0], [1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]]).double()
    # Each of the nine pairs is right, and as sure as the temperature lets it be.
    sure = torch.tensor(1 / TEMPERATURE, dtype=torch.double)
    assert contrast(right, group, real) == pytest.approx(torch.log1p(torch.exp(-sure)).item())
    assert contrast(-right, group, real) == pytest.approx(sure.item(), rel=1e-4)


@pytest.mark.parametrize("term", [anatomy_contrast, modality_contrast])
def test_what_is_not_there_takes_no_part(term: Any) -> None:
    x = torch.cat([maps(), maps(4).flip(-1)]) if term is anatomy_contrast else maps().view(2, 4, -1)
    real = torch.tensor([ALL, [True, False, False, True]])
    broken = x.clone()
    broken[1, 1:3] = float("nan")
    broken.requires_grad_()
    value = term(broken, real)
    value.backward()
    assert broken.grad is not None
    assert broken.grad.isfinite().all()
    assert not broken.grad[1, 1:3].any()
    assert torch.equal(value.detach(), term(x, real))


def test_small_maps_have_a_small_window() -> None:
    x, real = maps().flatten(0, 1), torch.ones(4, dtype=torch.bool)
    for size in (1, 2, 5):
        alike = similarities(x[:, :, :size, :size, :size], real)
        assert alike.isfinite().all()
        assert alike.abs().max() <= 1 + 1e-6


def test_each_term_trains_its_own_parts() -> None:
    two, batch = task(), batch_for(16, [SOME, ALL])
    terms = two._step(batch)
    parts = {"encoders": two.net.encoders, "head": two.net.head, "styles": two.painting.styles}
    parts |= {"spread": two.painting.painters[0].scale, "painter": two.painting.painters[0].enlarge}
    parts |= {"fusion": two.net.fusions[-1]}
    found = {}
    for name in ("main", "reconstruction", "anatomy", "modality", "kl"):
        two.zero_grad()
        terms[name].backward(retain_graph=True)
        found[name] = {
            key
            for key, part in parts.items()
            if any(p.grad is not None and bool(p.grad.any()) for p in part.parameters())
        }
    assert found == {
        "main": {"encoders", "head", "fusion"},
        "reconstruction": {"encoders", "fusion", "styles", "spread", "painter"},
        "anatomy": {"encoders"},
        "modality": {"styles"},
        "kl": {"styles", "spread"},
    }


def test_an_image_that_is_not_there_reaches_no_term() -> None:
    two, batch = task(), batch_for(16, [SOME])
    batch["available"] = batch["present"].clone()
    batch["image"][:, 1] = float("nan")
    terms = two._step(batch)
    assert all(value.isfinite() for value in terms.values())
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in two.parameters())


def test_a_dropped_image_is_painted_and_contrasted_but_not_seen() -> None:
    two, batch = task().eval(), batch_for(16, [SOME])
    two.net.training = True
    terms = []
    for factor in (1.0, 2.0):
        batch["image"][:, 1] *= factor
        terms.append(two._step(batch))
    changed = {name for name, value in terms[0].items() if not torch.equal(value, terms[1][name])}
    assert changed >= {"reconstruction", "anatomy", "modality", "kl"}
    assert "main" not in changed


@pytest.mark.parametrize(
    "host",
    [RFNet, *(pytest.param(net, marks=pytest.mark.slow) for net in (MMFormer, M2FTrans, IMFuse))],
)
def test_painters_fit_what_the_network_fuses(host: type[Backbone]) -> None:
    net = host(**host.small()).train()
    two, size = task(net), net.patch or 16
    image, present = torch.randn(1, 4, size, size, size), torch.ones(1, 4, dtype=torch.bool)
    content = net(image, present, present).fused
    assert content is not None
    scale, shift = two.painting.painters[0].affine(two.painting.styles[0](image[:, :1]).flatten(1))
    assert two.painting.painters[0](content, scale, shift).shape == (1, 1, size, size, size)


@pytest.mark.parametrize("host", [UNet, RobustSeg])
def test_networks_that_fuse_otherwise_are_refused(host: type[Backbone]) -> None:
    with pytest.raises(
        ConfigError, match=f"{host.__name__} gives nothing to paint images from; use rfnet"
    ):
        task(host(**host.small() | {"out_channels": 4}))


def test_published_sizes() -> None:
    with torch.device("meta"):
        painting = Painting(RFNet())
    shapes = [
        tuple(m.weight.shape) for m in painting.styles[0].modules() if hasattr(m, "kernel_size")
    ]
    sizes = [(32, 1, 7), (64, 32, 4), (128, 64, 4), (128, 128, 4), (128, 128, 4), (128, 128, 1)]
    assert [shape[:3] for shape in shapes] == sizes
    painter = [m for m in painting.painters[0].enlarge.modules() if hasattr(m, "kernel_size")]
    sizes = [(64, 128, 5), (32, 64, 5), (16, 32, 5), (1, 16, 7)]
    assert [tuple(m.weight.shape)[:3] for m in painter] == sizes
