import pytest
import torch
from torch import Tensor

from bts_lightning.errors import ConfigError
from bts_lightning.networks.m2ftrans import (
    DEEP,
    ChannelAttention,
    ChannelNorm,
    ChannelPerceptron,
    FusionLayer,
    M2FTrans,
)
from bts_lightning.networks.medmap import MedMAP

ALL = torch.ones(1, 4, dtype=torch.bool)
SOME = torch.tensor([[False, True, False, True]])


def small(**options: object) -> M2FTrans:
    torch.manual_seed(0)
    return M2FTrans(**M2FTrans.small() | options).eval()


@pytest.fixture
def image() -> Tensor:
    return torch.randn(1, 4, 32, 32, 32, generator=torch.Generator().manual_seed(1))


# No weight of the official code is without effect.
@pytest.mark.parametrize(
    ("sizes", "weights"),
    [({}, 13_489_820), ({"width": 16, "patch": 80}, 45_429_660)],
    ids=["v2", "v1"],
)
def test_both_versions_have_the_official_number_of_weights(
    sizes: dict[str, int], weights: int
) -> None:
    with torch.device("meta"):
        net = M2FTrans(**sizes)
    assert sum(p.numel() for p in net.parameters()) == weights


@torch.no_grad()
def test_cached_tokens_are_those_of_one_transformer_with_a_mask(image: Tensor) -> None:
    """As published: all tokens in one row, layer by layer, each block with its own sight."""
    net = small()
    features = net.encode(image, ALL).restrict(SOME)
    each = features.levels[DEEP].flatten(3).mT + torch.stack(list(net.positions), dim=1)
    blocks = torch.cat([each, (net.fusion + net.fusion_positions).unsqueeze(1)], dim=1)
    tokens = blocks.flatten(1, 2)
    sees = torch.eye(5, dtype=torch.bool)
    sees[4, :4] = SOME[0]
    n = blocks.shape[2]
    sees = sees.repeat_interleave(n, dim=0).repeat_interleave(n, dim=1)
    for layer in net.layers:
        tokens = layer.add(tokens, layer.attention(layer.norm(tokens), sees))
    states = torch.unflatten(tokens, 1, (5, n))
    torch.testing.assert_close(net.fuse(features)[0].flatten(2).mT, states[:, 4])
    torch.testing.assert_close(features.levels[-1].flatten(3).mT, states[:, :4])


@torch.no_grad()
def test_attention_of_a_layer_is_shared_out_among_what_is_present() -> None:
    torch.manual_seed(0)
    layer = FusionLayer(8, heads=2, hidden=8, dropout=0.0)
    _, shares = layer.fuse(torch.randn(1, 3, 8), torch.randn(1, 4, 3, 8), SOME)
    assert shares[0, [0, 2]].eq(0).all()
    assert shares[0, [1, 3]].gt(0).all()
    # Two heads, three tokens of the fusion; they look at each other too.
    assert shares.sum() < 6
    _, complete = layer.fuse(torch.full((1, 3, 8), -9.0), torch.full((1, 4, 3, 8), -9.0), ALL)
    torch.testing.assert_close(complete, torch.full((1, 4, 3), 6 / 15))


def test_weights_of_places_are_no_way_for_a_gradient(image: Tensor) -> None:
    net = small().train()
    features = net.encode(image, ALL)
    assert not net.fuse(features)[1].requires_grad


@torch.no_grad()
def test_what_is_filled_at_a_finer_level_alone_gets_the_mean_weight(image: Tensor) -> None:
    net = small()
    _, weights = net.fuse(net.encode(image, ALL).restrict(SOME))
    torch.testing.assert_close(weights[:, 0], weights[:, [1, 3]].mean(dim=1))
    torch.testing.assert_close(weights[:, 2], weights[:, 0])


@torch.no_grad()
def test_absent_channels_are_not_asked() -> None:
    torch.manual_seed(0)
    layer = ChannelAttention(4, dropout=0.0)
    x, modalities = torch.randn(1, 4, 2, 2, 2), torch.randn(1, 4, 4, 2, 2, 2)
    other = modalities.where(SOME.view(1, 4, 1, 1, 1, 1), -modalities)
    assert torch.equal(layer(x, modalities, SOME), layer(x, other, SOME))
    assert not torch.equal(layer(x, modalities, ALL), layer(x, other, ALL))


@torch.no_grad()
def test_a_map_is_told_by_its_channels_at_each_voxel() -> None:
    x = torch.tensor([[3.0, 5.0], [10.0, -10.0]]).mT.view(1, 2, 2, 1, 1)  # channels, then voxels
    expected = torch.tensor([[-1.0, 1.0], [1.0, -1.0]]).mT.view(1, 2, 2, 1, 1)
    torch.testing.assert_close(ChannelNorm(2)(x), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_perceptron_activates_the_sum() -> None:
    net = ChannelPerceptron(2)
    for parameter in net.body[-1].parameters():
        parameter.zero_()
    x = torch.tensor([-1.0, 2.0]).view(1, 2, 1, 1, 1)
    torch.testing.assert_close(net(x), torch.nn.functional.gelu(x))


def test_dropped_modalities_are_supervised_but_never_predicted_from(image: Tensor) -> None:
    net = small(dropout=0.0).train()
    output = net(image, SOME, available=ALL)
    other = net(image.flip(-1).where(~SOME.view(1, 4, 1, 1, 1), image), SOME, available=ALL)
    assert torch.equal(output.logits, other.logits)
    assert not torch.equal(output.auxiliary[0].logits, other.auxiliary[0].logits)


@torch.no_grad()
def test_medmap_fills_every_level(image: Tensor) -> None:
    net = small()
    plain = net(image, SOME).logits
    for level in range(len(net.fused_levels)):
        filled = MedMAP(net, levels=[level]).eval()(image, SOME).logits
        assert (filled - plain).norm() > 1e-3 * plain.norm()


def test_other_sizes_are_refused_with_the_one_that_fits() -> None:
    with pytest.raises(ValueError, match=r"built for \(32, 32, 32\) voxels, got \(48, 32, 32\)"):
        small()(torch.zeros(1, 4, 48, 32, 32), ALL)


@pytest.mark.parametrize(
    ("options", "problem"),
    [({"heads": 3}, "is not a multiple of heads 3"), ({"patch": 16}, "32 or more")],
)
def test_impossible_sizes_are_refused(options: dict[str, int], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        small(**options)
