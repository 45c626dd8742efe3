"""What is particular to U-Net-MFI: the exchange, zero images, and which maps learn."""

import pytest
import torch
from torch import Tensor

from bts_lightning.errors import ConfigError
from bts_lightning.modalities import SUBSETS
from bts_lightning.networks import mfi
from bts_lightning.networks.backbone import Weigher
from bts_lightning.networks.mfi import MFI, Exchange, MeanHead
from tests.networks.parts import check_that_a_fusion_treats_modalities_alike

ALL = torch.ones(1, 4, dtype=torch.bool)
SOME = torch.tensor([[True, False, True, False]])


@pytest.fixture
def net() -> MFI:
    torch.manual_seed(0)
    return MFI(**MFI.small()).eval()


@pytest.fixture
def image() -> Tensor:
    return torch.randn(1, 4, 16, 16, 16, generator=torch.Generator().manual_seed(1))


def test_full_width_has_the_official_number_of_weights_without_those_of_no_effect() -> None:
    with torch.device("meta"):
        net = MFI()
    exchanges = [*net.exchanges_down, *net.exchanges_up]
    dead = 3 * sum(p.numel() for exchange in exchanges for p in exchange.parameters())
    assert dead == 3_200_640
    assert sum(p.numel() for p in net.parameters()) == 34_119_161 - dead


@torch.no_grad()
def test_exchange_adds_a_weighted_mean_of_all_towers() -> None:
    torch.manual_seed(0)
    exchange = Exchange(2, Weigher("attention", 0))
    towers = [torch.randn(1, 2, 3, 3, 3) for _ in range(4)]
    g = [x.mean(dim=(2, 3, 4))[0] for x in towers]
    for i, mixed in enumerate(exchange(towers, SOME)):
        related = [
            exchange.relate(torch.cat([g[j], g[i], torch.full((4,), float(SOME[0, j]))]))
            for j in range(4)
        ]
        weights = torch.stack(related).softmax(dim=0)  # source C
        added = sum(weights[j].view(1, 2, 1, 1, 1) * towers[j] for j in range(4))
        torch.testing.assert_close(mixed, towers[i] + added)


def test_prediction_is_the_mean_of_five_maps() -> None:
    torch.manual_seed(0)
    head, maps = MeanHead(3), torch.randn(1, 12, 2, 2, 2)
    five = [*maps.split(3, dim=1), head.fuse(maps)]
    torch.testing.assert_close(head(maps), torch.stack(five).mean(dim=0))


@torch.no_grad()
def test_an_absent_modality_is_a_zero_image_that_is_known_to_be_none(
    net: MFI, image: Tensor
) -> None:
    absent = net(image, SOME).logits
    zeros = image.where(SOME.view(1, 4, 1, 1, 1), 0)
    features = net.encode(zeros, ALL)
    # The same features, and the exchanges are told nothing: another prediction.
    assert not torch.allclose(net.decode(features).logits, absent, atol=1e-4)
    levels = [[x[:, m] for m in range(4)] for x in features.levels]
    ours = [
        net.filled(net.encode(image, SOME), level, net.blanks(net.encode(image, SOME)))
        for level in (0, 1)
    ]
    for theirs, own in zip(levels, ours, strict=True):
        for a, b in zip(theirs, own, strict=True):
            torch.testing.assert_close(a, b)


@torch.no_grad()
def test_zero_images_run_only_where_they_are_read_and_once_for_all_subsets(
    net: MFI, image: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    for m, stem in enumerate(net.stems):
        stem.register_forward_hook(lambda module, inputs, output, m=m: ran.append(m))
    features = net.encode(image, ALL)
    net.decode(features)
    assert ran == [0, 1, 2, 3]
    net.decode(features.restrict(SOME))
    assert ran[4:] == [1, 3]
    ran.clear()
    net.encode(image, SOME)
    assert ran == [0, 2]
    ran.clear()
    net.decode_subsets(features, torch.tensor(SUBSETS))
    assert ran == [0, 1, 2, 3]
    monkeypatch.setattr(mfi, "is_worth_sharing", lambda levels: False)
    together = net.decode_subsets(features, torch.tensor(SUBSETS))
    assert ran == [0, 1, 2, 3] * 2
    monkeypatch.undo()
    torch.testing.assert_close(
        together, net.decode_subsets(features, torch.tensor(SUBSETS)), rtol=1e-3, atol=1e-3
    )


def test_towers_go_with_their_modality(net: MFI) -> None:
    with torch.no_grad():  # the last convolution would know the towers by their place
        maps = torch.unflatten(net.head.weight, 1, (4, -1))
        maps.copy_(maps.mean(dim=1, keepdim=True).expand_as(maps))
    check_that_a_fusion_treats_modalities_alike(net)


def test_each_map_learns_and_their_mean_does_not(net: MFI, image: Tensor) -> None:
    output = net.train()(image, SOME)
    assert output.weight == 0
    assert [head.name for head in output.auxiliary] == [
        "fused",
        *(f"tower/{m}" for m in ("t1", "t1c", "t2", "flair")),
        *(f"stage{n}/{m}" for n in (2, 1) for m in ("t1", "t1c", "t2", "flair")),
    ]
    assert {head.weight for head in output.auxiliary} == {1.0}
    assert {tuple(head.logits.shape) for head in output.auxiliary} == {(1, 3, 16, 16, 16)}
    coarse = [head.coarse for head in output.auxiliary[5:]]
    assert [x.shape[-1] for x in coarse if x is not None] == [8] * 4 + [4] * 4
    last = torch.stack([head.logits for head in output.auxiliary[:5]])
    torch.testing.assert_close(last.mean(dim=0), output.logits)


def test_zero_images_learn_too(net: MFI, image: Tensor) -> None:
    net.train()(image, SOME).auxiliary[2].logits.square().mean().backward()
    assert all(p.grad is not None for p in net.stems[1].parameters())


def test_width_is_in_groups() -> None:
    with pytest.raises(ConfigError, match="multiple of 8"):
        MFI(width=12)
