"""What is particular to A2FSeg: its variants, their sizes, and official weights."""

import weakref
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bts_lightning.modalities import SUBSETS
from bts_lightning.networks.a2fseg import network as a2fseg
from bts_lightning.networks.a2fseg import subsets as shortcuts
from bts_lightning.networks.a2fseg.modality_attention import Variant
from bts_lightning.networks.a2fseg.network import A2FSeg
from bts_lightning.networks.layers import deep_weights
from bts_lightning.networks.official.table import read_table
from tests.networks.parts import check_that_a_fusion_treats_modalities_alike

DEAD = 14_025_120  # the fusion decoder's unused encoder, as counted in the official network


@pytest.mark.parametrize(
    ("variant", "official"),
    [
        ("official", 156_365_696 - DEAD),
        ("decoder", 156_033_408 - DEAD),
        ("post", 125_170_112),
        ("base", 124_782_432),
        ("paper", 125_003_840),
    ],
)
def test_full_width_has_the_official_number_of_weights(variant: Variant, official: int) -> None:
    with torch.device("meta"):
        net = A2FSeg(variant=variant, deep_supervision=True)
    assert sum(p.numel() for p in net.parameters()) == official
    assert sum(p.numel() for p in net.unets[0].parameters()) == 31_195_584


def test_deep_supervision_has_the_official_weights() -> None:
    assert deep_weights(5) == pytest.approx([8 / 15, 4 / 15, 2 / 15, 1 / 15, 0])
    assert deep_weights(1) == [1]


def small(variant: Variant = "official", **extra: bool | int) -> A2FSeg:
    torch.manual_seed(0)
    return A2FSeg(variant=variant, **A2FSeg.small() | extra)


def flags(*names: int) -> Tensor:
    return torch.tensor([[m in names for m in range(4)]])


@torch.no_grad()
def test_attention_over_one_modality_is_the_modality() -> None:
    image = torch.randn(1, 4, 16, 16, 16)
    official, decoder = small("official").eval(), small("decoder").eval()
    decoder.load_state_dict(
        {k: v for k, v in official.state_dict().items() if not k.startswith("attention")}
    )
    alone, pair = flags(2), flags(2, 3)
    torch.testing.assert_close(official(image, alone).logits, decoder(image, alone).logits)
    assert not torch.allclose(official(image, pair).logits, decoder(image, pair).logits)


@pytest.mark.parametrize("variant", ["official", "post", "decoder", "base", "paper"])
def test_branches_and_scorers_go_with_their_modality(variant: Variant) -> None:
    check_that_a_fusion_treats_modalities_alike(small(variant).eval())


@pytest.mark.parametrize("variant", ["official", "post", "decoder", "base", "paper"])
def test_absent_modalities_are_not_supervised(variant: Variant) -> None:
    output = small(variant).train()(torch.randn(1, 4, 16, 16, 16), flags(1, 3))
    supervised = {a.name for a in output.auxiliary if a.valid is None or bool(a.valid)}
    averages = {"average"} if variant in ("official", "decoder", "paper") else set()
    assert supervised == {"modality/t1c", "modality/flair"} | averages
    # That of the finest of three heads: poolings decide it, as in the official code.
    weights = [1.0] if variant == "paper" else [2 / 3, 1 / 3, 0]
    assert output.weight == pytest.approx(weights[0])
    deep = [a.weight for a in output.auxiliary if a.name == "modality/t1c"]
    assert deep == pytest.approx(weights)


def test_without_deep_supervision_each_decoder_has_one_head() -> None:
    output = small(deep_supervision=False).train()(torch.randn(1, 4, 16, 16, 16), flags(1, 3))
    heads = {a.name: a.weight for a in output.auxiliary if a.valid is None or bool(a.valid)}
    assert heads == {"modality/t1c": 1, "modality/flair": 1, "average": 1}
    assert len(output.auxiliary) == 5
    assert output.weight == 1


def test_the_paper_supervises_its_average_like_its_final_prediction() -> None:
    net = A2FSeg(variant="paper", **A2FSeg.small(), final_head_weight=0.75).train()
    output = net(torch.randn(1, 4, 16, 16, 16), flags(1, 3))
    assert output.weight == 0.75
    assert [a.weight for a in output.auxiliary if a.name == "average"] == [0.75]


@pytest.mark.parametrize("variant", ["official", "base"])
def test_skipping_absent_modalities_changes_nothing(variant: Variant) -> None:
    image = torch.randn(3, 4, 16, 16, 16, dtype=torch.float64)
    present = torch.cat([flags(1), flags(1, 2), flags(0, 1)])
    skipping, running = small(variant), small(variant, skip_absent=False)
    gradients = []
    for net in (skipping, running):
        output = net.double().train()(image, present)
        logits = [
            output.logits,
            *(a.logits if a.valid is None else a.logits[a.valid] for a in output.auxiliary),
        ]
        torch.stack([x.square().sum() for x in logits]).sum().backward()
        gradients.append([output.logits] + [p.grad for p in net.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one, other)


def test_absent_unet_is_not_run() -> None:
    net = small().eval()
    net.unets[0].register_forward_hook(lambda *_: pytest.fail("T1 was encoded"))
    with torch.no_grad():
        net(torch.randn(1, 4, 16, 16, 16), flags(1, 2))


@torch.no_grad()
def test_features_of_one_unet_at_a_time_lie_beside_the_stacked_ones() -> None:
    net = small().eval()
    made: list[weakref.ref[torch.Tensor]] = []

    def nothing_is_left(*_: object) -> None:
        assert not any(finest() is not None for finest in made)

    for unet in net.unets:
        unet.register_forward_pre_hook(nothing_is_left)
        unet.register_forward_hook(lambda _, __, levels: made.append(weakref.ref(levels[0])))
    features = net.encode(torch.randn(1, 4, 16, 16, 16), flags(0, 2, 3))
    assert len(made) == 3
    assert not features.levels[0][:, 1].any()


@pytest.mark.parametrize("variant", ["official", "paper"])
def test_folded_network_works_on_an_eighth_of_the_voxels(variant: Variant) -> None:
    net = small(variant, fold=2, poolings=2).eval()
    image = torch.randn(1, 4, 16, 16, 24, requires_grad=True)
    assert net.encode(image, flags(0, 1, 2, 3)).levels[0].shape[3:] == (8, 8, 12)
    output = net(image, flags(0, 1, 2, 3))
    assert output.logits.shape == (1, 3, 16, 16, 24)
    (slope,) = torch.autograd.grad(output.logits[0, 0, 7, 7, 7], image)
    assert slope.ne(0).all()
    # The eight voxels of a block are told apart.
    assert len(output.logits[0, 0, :2, :2, :2].flatten().unique()) == 8
    with pytest.raises(ValueError, match="multiples of 8"):
        net.check_size((12, 16, 16))


@pytest.mark.parametrize("fold", [1, 2])
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("count", [3, 7])
@pytest.mark.parametrize("variant", ["official", "post", "decoder", "base", "paper"])
@torch.no_grad()
def test_linear_work_is_shared_between_subsets(
    variant: Variant, count: int, skip: bool, fold: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = small(variant, skip_absent=skip, fold=fold, poolings=3 // fold).eval().double()
    features = net.encode(torch.randn(1, 4, 16, 16, 16).double(), flags(0, 2, 3))
    for level in features.levels:
        level[:, 1] = float("nan")  # T1c was never there
    subsets = torch.tensor([s for s in SUBSETS if not s[1]])[-count:]
    alone = [net.decode(features.restrict(subset.view(1, 4))).logits for subset in subsets]
    # Slabs of some planes each: neither their borders nor those of the window may show.
    monkeypatch.setattr(shortcuts, "SHARED_BYTES", 2**20)
    torch.testing.assert_close(
        net.decode_subsets(features, subsets).flatten(0, 1), torch.cat(alone)
    )


@torch.no_grad()
def test_large_features_are_decoded_without_sharing(monkeypatch: pytest.MonkeyPatch) -> None:
    net = small("official").eval()
    features = net.encode(torch.randn(1, 4, 16, 16, 16), flags(0, 1, 2, 3))
    subsets = torch.tensor(SUBSETS)
    shared = net.decode_subsets(features, subsets)
    monkeypatch.setattr(a2fseg, "MOST_BYTES", 0)
    monkeypatch.setattr(a2fseg, "OwnTerms", lambda *_: pytest.fail("something was shared"))
    torch.testing.assert_close(net.decode_subsets(features, subsets), shared, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_shared_work_stays_near_in_half_precision() -> None:
    net = small("paper").eval()
    features = net.encode(torch.randn(1, 4, 16, 16, 16), flags(0, 1, 2, 3))
    subsets = torch.tensor(SUBSETS)
    full = net.decode_subsets(features, subsets)
    half = tuple(level.bfloat16() for level in features.levels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = net.decode_subsets(replace(features, levels=half), subsets)
    assert rounded.dtype == torch.bfloat16
    assert (rounded - full).norm() < 0.02 * full.norm()


def test_official_names_become_ours() -> None:
    names = {
        "modality_specific_models.2.conv_blocks_context.0.blocks.1.conv.weight":
            "unets.2.contract.stages.0.1.0.weight",
        "modality_specific_models.0.conv_blocks_context.3.1.blocks.0.instnorm.bias":
            "unets.0.contract.stages.3.1.1.bias",
        "modality_specific_models.1.conv_blocks_localization.0.1.blocks.0.conv.bias":
            "unets.1.expand.joins.2.1.0.bias",
        "fusion_decoder.tu.2.weight": "fusion_decoder.ups.0.weight",
        "fusion_decoder.seg_outputs.1.weight": "fusion_decoder.heads.1.weight",
        "modality_aware_modules.3.0.bias": "attention.3.0.bias",
        "lastconv.0.1.weight": "refine.1.weight",
        "output.weight": "head.weight",
    }  # fmt: skip
    with torch.device("meta"):
        places = read_table("a2fseg").places(A2FSeg(width=2, poolings=3).state_dict())
    assert {official: places[ours].name for official, ours in names.items()} == {
        n: n for n in names
    }
