"""What is particular to AMoE-BTS: its global module, its gates, its memory, its sizes."""

import re
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bts_lightning.errors import ConfigError
from bts_lightning.networks import experts as experts_module
from bts_lightning.networks.amoe_bts import AMoEBTS, ModalityEncoder, Skip
from bts_lightning.networks.backbone import Weigher
from bts_lightning.networks.experts import (
    ExpertMemory,
    Experts,
    GlobalModule,
    GlobalPool,
    imbalance,
    keep_largest,
)

ALL = torch.ones(1, 4, dtype=torch.bool)


def small(**options: Any) -> AMoEBTS:
    torch.manual_seed(0)
    return AMoEBTS(**AMoEBTS.small() | options)


def image(size: int = 32) -> Tensor:
    return torch.randn(1, 4, size, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("gam", "weights"),
    [
        ("official", 36_682_577 - 26_784_902),
        # Two convolutions that the official code never uses stay out.
        ("intended", 36_682_577 - 12_416),
        ("residual", 36_682_577 - 12_416 + 2_212_096),
    ],
)
def test_full_width_has_the_live_weights_of_the_official_network(
    gam: Literal["official", "intended", "residual"], weights: int
) -> None:
    with torch.device("meta"):
        net = AMoEBTS(gam=gam)
    assert sum(p.numel() for p in net.parameters()) == weights


@pytest.mark.parametrize(("experts", "weights"), [(4, 3_980_416), (6, 5_970_624), (8, 7_960_832)])
def test_experts_and_gates_have_the_official_weights(experts: int, weights: int) -> None:
    with torch.device("meta"):
        net = AMoEBTS(experts=experts, gam="official")
    routed = (
        p.numel() for name, p in net.named_parameters() if re.search(r"experts\.\d|gate", name)
    )
    assert sum(routed) == weights


def test_global_module_learns_when_connected() -> None:
    net = small().train()
    net(image(), ALL).logits.square().mean().backward()
    assert net.gam is not None
    gate, attention = net.gam.gate.weight.grad, net.gam.attend[1].qkv.weight.grad  # type: ignore[union-attr]
    assert gate is not None
    assert gate.norm() > 1e-7
    assert isinstance(attention, Tensor)
    assert attention.norm() > 1e-7


def test_more_experts_than_there_are_cannot_be_asked() -> None:
    with pytest.raises(ConfigError, match="top_k is 5; with 4 experts it is 1 to 4"):
        small(top_k=5)


def test_heads_must_divide_a_token() -> None:
    with pytest.raises(ConfigError, match="heads is 3; it must divide 128"):
        small(heads=3)


def test_patch_must_be_a_multiple_of_16() -> None:
    with pytest.raises(ConfigError, match="patch is 40"):
        small(patch=40)


def test_largest_are_kept_as_they_are() -> None:
    shares = torch.tensor([0.1, 0.4, 0.2, 0.3])
    assert keep_largest(shares, 2).tolist() == pytest.approx([0, 0.4, 0, 0.3])


@pytest.mark.parametrize("renormalise", [False, True])
def test_gates_of_a_voxel_add_up_to_one_only_when_renormalised(renormalise: bool) -> None:
    net = small(renormalise=renormalise).eval()
    seen: list[Tensor] = []
    for module in net.modules():
        if isinstance(module, Experts):
            module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    with torch.no_grad():
        net.encode(image(), ALL)
    assert len(seen) == 4 * 4 * 2  # modalities, levels, layers
    for gates in seen:
        assert ((gates > 0).sum(dim=-1) == 2).all()
        assert torch.allclose(gates.sum(dim=-1), torch.ones(()), atol=1e-5) == renormalise


def global_module(*, plain_sum: bool) -> GlobalModule:
    torch.manual_seed(0)
    experts = Experts(4, 8, 16, dropout=0.0, memory="plain")
    gate, weigher = nn.Linear(8, 4), Weigher("global gates", 4)
    return GlobalModule(
        8, experts, gate=gate, top_k=2, plain_sum=plain_sum, heads=2, grid=2, weigher=weigher
    )


def test_chosen_experts_are_weighted_by_their_share() -> None:
    module, tokens = global_module(plain_sum=False), torch.randn(1, 5, 8)
    logits = module.gate(tokens)
    gates = module.gates(logits)
    for token in range(5):
        chosen = logits[0, token].topk(2)
        assert torch.equal(gates[0, token].nonzero().flatten(), chosen.indices.sort().values)
        torch.testing.assert_close(gates[0, token, chosen.indices], chosen.values.softmax(dim=0))


def test_plain_sum_counts_each_chosen_expert_once() -> None:
    gates = global_module(plain_sum=True).gates(torch.randn(1, 5, 4))
    torch.testing.assert_close(
        gates.sort(dim=-1).values, torch.tensor([0.0, 0, 1, 1]).expand(1, 5, 4)
    )


def test_position_table_is_used_as_it_is_or_stretched() -> None:
    module = global_module(plain_sum=False)
    nn.init.normal_(module.positions)
    assert module.positions_for((2, 2, 2)) is module.positions
    stretched = module.positions_for((4, 4, 2))
    assert stretched.shape == (1, 32, 8)
    torch.testing.assert_close(stretched[0, 0], module.positions[0, 0])
    torch.testing.assert_close(stretched[0, -1], module.positions[0, -1])


def test_any_multiple_of_16_is_taken() -> None:
    net = small().eval()
    with torch.no_grad():
        assert net(torch.randn(1, 4, 48, 32, 64), ALL).logits.shape == (1, 3, 48, 32, 64)


@pytest.mark.parametrize("memory", ["checkpoint", "chunked"])
def test_saving_memory_changes_no_number(
    memory: ExpertMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experts_module, "CHUNK", 5)
    torch.manual_seed(0)
    plain = Experts(3, 4, 8, dropout=0.0, memory="plain")
    thrifty = Experts(3, 4, 8, dropout=0.0, memory=memory)
    thrifty.load_state_dict(plain.state_dict())
    found = []
    for experts in (plain, thrifty):
        torch.manual_seed(1)
        tokens = torch.randn(2, 13, 4, requires_grad=True)
        gates = torch.rand(2, 13, 3, requires_grad=True)
        answers = experts(tokens, gates)
        answers.square().sum().backward()
        found.append([answers, tokens.grad, gates.grad, *(p.grad for p in experts.parameters())])
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize(
    ("memory", "kept"), [("plain", True), ("checkpoint", False), ("chunked", False)]
)
def test_hidden_maps_are_kept_only_when_told_to(memory: ExpertMemory, kept: bool) -> None:
    experts = Experts(3, 4, 8, dropout=0.0, memory=memory)
    shapes: list[tuple[int, ...]] = []

    def note(x: Tensor) -> Tensor:
        shapes.append(tuple(x.shape))
        return x

    tokens = torch.randn(1, 13, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        experts(tokens, torch.rand(1, 13, 3))
    assert any(shape[-1] == 8 and shape[-2] == 13 for shape in shapes) == kept


def test_terms_of_a_skip_add_up_to_the_convolution_of_all_modalities() -> None:
    torch.manual_seed(0)
    encoders = [ModalityEncoder([2, 4], lambda width: nn.Identity()) for _ in range(4)]
    convolutions = [encoder.terms[0] for encoder in encoders]
    skip, x = Skip(2), torch.randn(1, 4, 2, 4, 4, 4)
    seen: list[Tensor] = []
    skip.rest.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    skip(torch.stack([c(x[:, m]) for m, c in enumerate(convolutions)]).sum(dim=0))
    weight = torch.cat([c.weight for c in convolutions if isinstance(c, nn.Conv3d)], dim=1)
    whole = F.conv3d(x.flatten(1, 2), weight, skip.bias, padding=1)
    torch.testing.assert_close(seen[0], whole)


def test_terms_of_a_skip_are_drawn_as_one_convolution_would_be() -> None:
    torch.manual_seed(0)
    whole = nn.Conv3d(4 * 16, 16, 3)
    part = ModalityEncoder([16, 16], lambda width: nn.Identity()).terms[0].weight
    assert isinstance(part, Tensor)
    assert float(part.detach().std()) == pytest.approx(float(whole.weight.detach().std()), rel=0.05)


def test_absent_modalities_add_nothing_to_a_skip() -> None:
    net = small(gam="official").eval()
    with torch.no_grad():
        features = net.encode(image(), ALL)
        alone = features.restrict(torch.tensor([[True, False, False, False]]))
        assert (alone.selected(0)[:, 1:] == 0).all()
        assert (alone.selected(4)[:, 1:] == 0).all()
        assert not torch.equal(net.decode(alone).logits, net.decode(features).logits)


def test_imbalance_is_one_when_all_are_asked_alike_and_largest_when_one_is() -> None:
    alike = torch.full((1, 8, 4), 0.25)
    in_turns = torch.eye(4).repeat(2, 1).unsqueeze(0)
    assert imbalance(alike, in_turns, 1).tolist() == [1.0]
    always_first = torch.eye(4)[:1].expand(2, 8, 4)
    assert imbalance(always_first, always_first, 1).tolist() == [4.0, 4.0]
    # Two of four: the first is chosen always, 0.6 of all; the second half of the time, 0.2.
    shares = torch.tensor([[[0.6, 0.2, 0.1, 0.1]]]).expand(1, 4, 4)
    gates = torch.tensor([[1.0, 1, 0, 0], [1, 0, 1, 0]]).repeat(2, 1).unsqueeze(0)
    expected = 4 * (0.5 * 0.6 + 0.25 * 0.2 + 0.25 * 0.1)
    assert imbalance(shares, gates, 2).item() == pytest.approx(expected)


def test_load_balance_is_off_as_released_and_reaches_every_gate_when_on() -> None:
    assert "balance" not in small().train()(image(), ALL).penalties
    net = small(load_balance=0.01).train()
    some = torch.tensor([[True, False, True, False]])
    penalty = net(image(), some).penalties["balance"]
    assert 0.005 < penalty.item() < 0.04
    penalty.backward()
    for name, weight in net.named_parameters():
        if name.endswith("gate.weight"):
            is_there = not re.match(r"encoders\.[13]", name)
            assert weight.grad is not None
            assert (weight.grad.abs().sum() > 0) == is_there, name
    assert len(net.eval().encode(image(), ALL).levels) == 5


def test_balance_does_not_depend_on_who_is_beside() -> None:
    net = small(load_balance=1.0).train()
    two = torch.cat([image(), 2 * image().flip(2)])
    both = net(two, ALL.expand(2, -1)).penalties["balance"]
    each = [net(two[i : i + 1], ALL).penalties["balance"] for i in range(2)]
    torch.testing.assert_close(both, (each[0] + each[1]) / 2, rtol=1e-3, atol=0)


def test_global_pool_scales_and_shifts_the_mean_of_each_channel() -> None:
    pool = GlobalPool(2)
    with torch.no_grad():
        pool.table[0, 0], pool.table[0, 1] = 2.0, 1.0
        x = torch.arange(16.0).view(1, 2, 2, 2, 2)  # the channels have the means 7 and 8
        found = pool(x)
        assert found[0, ..., 0].unique().tolist() == [15.0]
        assert found[0, ..., 1].unique().tolist() == [17.0]
        assert pool(torch.ones(1, 4, 4, 2, 3)).unique().tolist() == [3.0]  # another size


def test_the_mixer_of_the_figure_has_a_table_for_each_layer() -> None:
    net = small(mixer="globalpool")
    tables = [p for name, p in net.named_parameters() if name.endswith("around.table")]
    assert sorted({tuple(t.shape) for t in tables}) == [(1, 2, n, n, n) for n in (2, 4, 8, 16)]
    assert len(tables) == 4 * 4 * 2
    net.train()(torch.randn(1, 4, 48, 32, 32), ALL).logits.sum().backward()
    assert all(t.grad is not None and t.grad.abs().sum() > 0 for t in tables)
