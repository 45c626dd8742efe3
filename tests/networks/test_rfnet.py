import pytest
import torch
from torch import Tensor

from bts_lightning.networks.backbone import Features, Weigher
from bts_lightning.networks.rfnet import RegionFusion, RFNet

ALL = torch.ones(1, 4, dtype=torch.bool)
SOME = torch.tensor([[True, False, True, False]])


def count(*modules: torch.nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.fixture
def net() -> RFNet:
    torch.manual_seed(0)
    return RFNet(width=4)


@pytest.fixture
def image() -> Tensor:
    return torch.randn(1, 4, 16, 16, 16, generator=torch.Generator().manual_seed(1))


def test_full_width_has_the_official_number_of_weights() -> None:
    net = RFNet()
    assert count(net) == 8_984_960
    assert round(count(net.encoders[0]) / 1e6, 3) == 1.466
    assert round(count(net.modality_decoder) / 1e6, 3) == 0.586


def test_fusion_weighs_each_modality_for_each_region() -> None:
    torch.manual_seed(0)
    fusion = RegionFusion(8, 3, Weigher("attention", 0))
    modalities = torch.randn(2, 4, 8, 3, 3, 3)
    maps = torch.rand(2, 3, 3, 3, 3)
    weights = fusion.weights(modalities, maps)
    for b in range(2):
        for r in range(3):
            share = maps[b, r].mean()
            means = [(modalities[b, m] * maps[b, r]).mean((1, 2, 3)) / share for m in range(4)]
            expected = fusion.weigh[r](torch.cat([*means, share.view(1)]))
            torch.testing.assert_close(weights[b, r], expected, rtol=1e-4, atol=1e-5)


def test_fused_regions_are_weighted_sums_within_their_maps() -> None:
    torch.manual_seed(0)
    fusion = RegionFusion(8, 2, Weigher("attention", 0))
    seen: list[Tensor] = []
    fusion.fuse.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    modalities, maps = torch.randn(1, 4, 8, 3, 3, 3), torch.rand(1, 2, 3, 3, 3)
    fusion(modalities, maps)
    weights = fusion.weights(modalities, maps)
    expected = torch.einsum("brm,bmcdhw,brdhw->brcdhw", weights, modalities, maps)
    torch.testing.assert_close(seen[0], expected.flatten(1, 2))


def test_prediction_does_not_train_the_region_maps(net: RFNet, image: Tensor) -> None:
    net.train()(image, ALL).logits.square().mean().backward()
    assert all(p.grad is None for p in net.maps.parameters())
    assert all(p.grad is not None for p in net.fusions.parameters())


def test_training_supervises_modalities_and_maps_at_full_size(net: RFNet, image: Tensor) -> None:
    output = net.train()(image, SOME, available=ALL)
    assert [a.name for a in output.auxiliary[:4]] == [
        "modality/t1",
        "modality/t1c",
        "modality/t2",
        "modality/flair",
    ]
    assert [a.name for a in output.auxiliary[4:]] == [f"region_maps/{level}" for level in range(4)]
    assert {tuple(a.logits.shape) for a in output.auxiliary} == {(1, 4, 16, 16, 16)}


def test_dropped_modalities_are_supervised_but_never_predicted_from(
    net: RFNet, image: Tensor
) -> None:
    net.train()
    output = net(image, SOME, available=ALL)
    other = net(image.flip(-1).where(~SOME.view(1, 4, 1, 1, 1), image), SOME, available=ALL)
    assert torch.equal(output.logits, other.logits)
    assert not torch.equal(output.auxiliary[1].logits, other.auxiliary[1].logits)


def test_heads_of_modalities_read_features_from_before_an_alignment(
    net: RFNet, image: Tensor
) -> None:
    features = net.train().encode(image, ALL)
    changed = tuple(torch.randn_like(x) for x in features.levels)
    aligned = Features(changed, features.present, features.real, original=features)
    before, after = net.decode(features), net.decode(aligned)
    assert torch.equal(before.auxiliary[0].logits, after.auxiliary[0].logits)
    assert not torch.equal(before.logits, after.logits)
