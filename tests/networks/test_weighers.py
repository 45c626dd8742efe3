"""What networks tell of how they weigh their modalities: laws for all, and numbers by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor

from bts_lightning.modalities import SUBSETS
from bts_lightning.networks.a2fseg.modality_attention import ModalityAttention
from bts_lightning.networks.backbone import Backbone, Features, Weigher
from bts_lightning.networks.medmap import MedMAP
from bts_lightning.networks.presence import Presence
from bts_lightning.networks.rfnet import RegionFusion, RFNet
from bts_lightning.networks.uhved import UHVED
from tests.networks.parts import build, image_for, networks

ALL = torch.ones(1, 4, dtype=torch.bool)
TWO = torch.tensor([[False, True, False, True]])
SOME = torch.tensor(SUBSETS[::3])
# Every class that weighs modalities; a U-HeMIS, a Transformer, a Mamba … does not.
WEIGH = {"A2FSeg", "AMoEBTS", "M2FTrans", "MFI", "RFNet", "RobustSeg", "UHVED"}


def listen(weighers: tuple[Weigher, ...]) -> list[list[Tensor]]:
    told: list[list[Tensor]] = [[] for _ in weighers]
    for weigher, heard in zip(weighers, told, strict=True):
        weigher.listener = heard.append
    return told


def stop(net: Backbone) -> None:
    for weigher in net.weighers():
        weigher.listener = None


@pytest.mark.slow
def test_the_networks_that_weigh_are_known() -> None:
    built = [build(node) for node in networks().values()]
    assert {type(net).__name__ for net in built if net.weighers()} == WEIGH


@pytest.mark.parametrize(
    "name",
    ["a2fseg", "a2fseg_paper", "kd_rfnet", "robustseg", "uhved"]
    + [pytest.param(name, marks=pytest.mark.slow) for name in ("a2fseg_post", "m2ftrans", "mfi")],
)
@torch.no_grad()
def test_each_subset_is_told_once_in_order_and_no_number_changes(name: str) -> None:
    net = build(networks()[name])
    features = net.encode(image_for(net), ALL)
    silent = net.decode_subsets(features, SOME)
    told = listen(net.weighers())
    heard = net.decode_subsets(features, SOME)
    torch.testing.assert_close(heard, silent, rtol=1e-4, atol=1e-4)
    together = [torch.cat(each) for each in told]
    for each in told:
        each.clear()
    for subset in SOME:
        net.decode(features.restrict(subset.unsqueeze(0)))
    for once, one_by_one in zip(together, map(torch.cat, told), strict=True):
        assert once.shape[:2] == (len(SOME), 4)
        assert (once[SOME] >= 0).all()
        torch.testing.assert_close(once[SOME], one_by_one[SOME], rtol=1e-3, atol=1e-4)
        if name.startswith("a2fseg"):
            torch.testing.assert_close(once.sum(dim=1), torch.ones_like(once[:, 0]))
            assert (once[~SOME] == 0).all()


@torch.no_grad()
def test_gates_are_told_by_modality_level_layer_and_expert() -> None:
    net = build(networks()["amoe_bts"])
    told = listen(net.weighers())
    features = net.encode(image_for(net), ALL)
    own = [w for w in net.weighers() if w.modality is not None]
    assert [(w.modality, w.level) for w in own] == [
        (m, level) for m in range(4) for level in (1, 2, 3, 4) for _ in range(2)
    ]
    for weigher, heard in zip(own, told, strict=False):
        (gates,) = heard
        assert gates.shape == (1, 1, 4, *[32 // 2**weigher.level] * 3)
        assert ((gates > 0).sum(dim=2) == 2).all()  # of four experts two are asked
    net.decode(features)
    assert net.weighers()[-1].kind == "global gates"
    torch.testing.assert_close(told[-1][0].sum(dim=2), torch.ones(1, 1, 2, 2, 2))


@pytest.mark.parametrize(
    ("variant", "biases", "expected"),
    [
        ("official", (1.0, -100.0), (0.88080, 0.11920)),  # leaky: softmax(1, -1)
        ("paper", (0.0, 1.09861), (0.43782, 0.56218)),  # sigmoid: softmax(0.5, 0.75)
    ],
)
@torch.no_grad()
def test_attention_is_the_softmax_of_those_that_are_there(
    variant: Any, biases: tuple[float, float], expected: tuple[float, float]
) -> None:
    attention = ModalityAttention(2, variant).eval()
    for m, bias in ((1, biases[0]), (3, biases[1])):
        last = [x for x in attention[m].children() if isinstance(x, torch.nn.Conv3d)][-1]
        assert last.bias is not None
        last.weight.zero_()
        last.bias.fill_(bias)
    (told,) = listen((attention.weigher,))
    x = list(torch.randn(4, 1, 2, 4, 4, 4))
    attention(x, Presence([TWO], read=True), torch.randn(1, 2, 4, 4, 4))
    weights = told[0].mean(dim=(2, 3, 4))[0]
    assert weights.tolist() == pytest.approx([0, expected[0], 0, expected[1]], abs=1e-5)


@torch.no_grad()
def test_weights_of_regions_are_mixed_by_their_probabilities() -> None:
    fusion = RegionFusion(4, 2, Weigher("attention", 0))
    for r, biases in enumerate(([0.0, 0, 0, 0], [100.0, -100, 100, 0])):
        last = fusion.weigh[r][2]  # type: ignore[index]
        last.weight.zero_()
        last.bias.copy_(torch.tensor(biases))
    (told,) = listen((fusion.weigher,))
    maps = torch.tensor([0.5, 1.5]).view(1, 2, 1, 1, 1).expand(1, 2, 2, 2, 2)  # 1/4 and 3/4
    fusion(torch.randn(1, 4, 4, 2, 2, 2), maps)
    # 1/4 · ½ + 3/4 · (1, 0, 1, ½)
    assert told[0][0, :, 0, 0, 0].tolist() == pytest.approx([0.875, 0.125, 0.875, 0.5])


@torch.no_grad()
def test_precisions_share_with_the_prior() -> None:
    net = UHVED(width=4).eval()
    (told, *_) = listen(net.weighers())
    level = torch.zeros(1, 4, 4, 2, 2, 2)  # means and log-variances 0
    features = Features((level,) * 4, (TWO,) * 4, ALL)
    net._fuse(features, 0)
    assert told[0][0, :, 0, 0, 0].tolist() == pytest.approx([0, 1 / 3, 0, 1 / 3], abs=1e-5)


@torch.no_grad()
def test_the_anchor_tells_its_shares_beside_the_network_inside() -> None:
    net = MedMAP(RFNet(width=4), levels=[1, 3]).eval()
    net.theta[0] = torch.tensor([1.0, 2, 3, 4]).log()
    assert [(w.kind, w.level) for w in net.weighers()][:2] == [("anchor", 1), ("anchor", 3)]
    told = listen(net.weighers())
    net(torch.randn(1, 4, 16, 16, 16), TWO)
    assert told[0][0].tolist() == [pytest.approx([0, 1 / 3, 0, 2 / 3])]
    assert told[1][0].tolist() == [[0, 0.5, 0, 0.5]]
    assert all(len(heard) == 1 for heard in told[2:])
    stop(net)
    assert not net.is_heard


@pytest.mark.parametrize("options", [{"anchor": "standard_normal"}, {"watch_only": True}])
def test_an_anchor_without_weights_tells_none(options: dict[str, Any]) -> None:
    assert len(MedMAP(RFNet(width=4), **options).weighers()) == 4  # those of RFNet
