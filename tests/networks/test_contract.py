"""Every network that an experiment names obeys the laws of the contract.

A network is found by its YAML: each `experiments/*.yaml` with a `net:` node is built with the
overrides of the class method `small()` (`@classmethod def small(cls) -> dict[str, Any]`,
constructor arguments that make a network of the same wiring that runs in a blink) and fed 16³
voxels, or twice its `divisor` where that is more. A network that takes one size only must take that
one in its `small` form. Parameters that get no gradient in one step, and why, are named in
`UNTRAINED`.
"""

import inspect
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor
from torch._dynamo.utils import counters

from bts_lightning.errors import ConfigError
from bts_lightning.modalities import SUBSETS, Subset, subset_name
from bts_lightning.networks.backbone import Backbone, Features, Output
from tests.networks.parts import branches, build, image_for, move, networks, permute_branches

# Class name -> (pattern of parameter names, reason why one step on one sample need not move them).
UNTRAINED: dict[str, tuple[str, str]] = {
    "AMoEBTS": (r"\.squeeze\.|\.experts\.", "a ReLU is off, or no voxel asks an expert, by chance"),
}

# Their parts of absent modalities run on, on a zero image; `test_mfi.py` moves branches and images.
RUNS_ABSENT = {"MFI"}

# To trace costs more than all other laws: the quick tests do it for a few that differ much.
TRACED = {"a2fseg", "rfnet", "unet_small"}

# Each takes half a minute of the laws, even in its small form: all of them are slow tests.
SLOW = {
    *("amoe_bts", "gmd", "imfuse", "lckd", "m2ftrans", "mifpn", "mmformer", "shaspec", "unimrseg"),
}

# Rows of a batch go through other kernels (blocking, vector width) than single samples, so sums are
# rounded in another order; norms over few voxels amplify that (mmFormer: 2e-4, none in double
# precision). A leak between rows would be of the size of the signal.
ROUNDING = {"rtol": 1e-3, "atol": 1e-3}


def forms(also_slow: Collection[str] = ()) -> list[Any]:
    """List the networks; the quick tests take the first form of each class."""
    cases, met = [], set()
    for name, node in networks().items():
        slow = node._target_ in met or name in SLOW or name in also_slow
        met.add(node._target_)
        cases.append(pytest.param(node, id=name, marks=[pytest.mark.slow] if slow else []))
    return cases


@pytest.fixture(params=forms())
def net(request: pytest.FixtureRequest) -> Backbone:
    """Build the small form of an experiment's network, without symmetric or zero weights."""
    return build(request.param)


compiled = pytest.mark.parametrize("net", forms(networks().keys() - TRACED), indirect=True)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def rows(*subsets: Subset) -> Tensor:
    return torch.tensor(subsets)


def spoil(image: Tensor, present: Tensor, value: float) -> Tensor:
    """Fill the absent channels with a value."""
    keep = present.view(*present.shape, 1, 1, 1)
    return torch.where(keep, image, torch.full_like(image, value))


def everything(output: Output) -> list[Tensor]:
    """List all tensors of an output."""
    parts = [auxiliary.logits for auxiliary in output.auxiliary]
    return [output.logits, *parts, *output.penalties.values()]


def objective(output: Output) -> Tensor:
    """Give a scalar that depends on all that a training step would look at."""
    total = torch.zeros(())
    for logits in [output.logits, *(auxiliary.logits for auxiliary in output.auxiliary)]:
        draw = torch.Generator().manual_seed(7)
        total = total + (logits.float() * torch.randn(logits.shape, generator=draw)).mean()
        total = total + logits.float().square().mean()
    return total + sum(output.penalties.values())


# Law 1: no leak


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@torch.no_grad()
def test_absent_content_changes_no_bit(net: Backbone, value: float) -> None:
    image = image_for(net)
    for subset in [
        (True, False, False, False),
        (False, True, False, True),
        (True, True, True, False),
    ]:
        present = rows(subset)
        clean = net(spoil(image, present, 0.0), present).logits
        assert clean.isfinite().all()
        assert torch.equal(net(spoil(image, present, value), present).logits, clean)


def test_absent_nan_reaches_no_gradient(net: Backbone) -> None:
    present = rows((False, True, True, False), (True, False, False, False))
    image = spoil(image_for(net, batch=2), present, float("nan"))
    output = net.train()(image, present, available=present)
    assert all(tensor.isfinite().all() for tensor in everything(output))
    objective(output).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@torch.no_grad()
def test_decode_never_reads_absent_slots(net: Backbone) -> None:
    present = rows((False, True, False, True))
    features = net.encode(image_for(net), torch.ones_like(present))
    seen = net.decode(features.restrict(present)).logits
    broken = tuple(
        torch.where(present.view(1, 4, *[1] * (x.dim() - 2)), x, float("nan"))
        for x in features.levels
    )
    spoilt = Features(broken, features.present, features.real, features.original)
    assert torch.equal(net.decode(spoilt.restrict(present)).logits, seen)


def test_dropped_modalities_do_not_change_the_prediction_in_training(net: Backbone) -> None:
    image, present = image_for(net), rows((False, True, False, True))
    available = rows((True, True, False, True))
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # its draws depend on how many modalities are encoded
    logits = []
    for seen in (present, available):
        torch.manual_seed(3)
        logits.append(net.train()(image, present, available=seen).logits)
    assert torch.equal(*logits)


# Law 2: order


@torch.no_grad()
def test_one_modality_depends_on_exactly_its_channel(net: Backbone) -> None:
    image = image_for(net)
    for channel in range(4):
        present = torch.zeros(1, 4, dtype=torch.bool)
        present[0, channel] = True
        logits = net(image, present).logits
        for changed in range(4):
            other = image.clone()
            other[:, changed] = other[:, changed].flip(-1) + 1
            assert torch.equal(net(other, present).logits, logits) == (changed != channel)


@torch.no_grad()
def test_modalities_are_told_apart(net: Backbone) -> None:
    image = image_for(net)
    same = image[:, :1].expand(-1, 4, -1, -1, -1)
    single = [net(same, torch.eye(4, dtype=torch.bool)[i : i + 1]).logits for i in range(4)]
    for i in range(4):
        for j in range(i):
            assert not torch.allclose(single[i], single[j], rtol=1e-3, atol=1e-3)


# These two make up all others: whoever passes both has no two branches swapped.
@pytest.mark.parametrize("order", [[1, 2, 3, 0], [1, 0, 2, 3]])
@torch.no_grad()
def test_a_branch_encodes_its_own_modality(net: Backbone, order: list[int]) -> None:
    image, present = image_for(net), torch.ones(1, 4, dtype=torch.bool)
    before = net.encode(image, present).levels
    if not permute_branches(net, order):
        pytest.skip("encodes all modalities alike")
    together = net.encode(image[:, order], present).levels
    assert all(torch.equal(x[:, order], y) for x, y in zip(before, together, strict=True))
    alone = net.encode(image, present).levels
    for m in (m for m in range(4) if order[m] != m):
        assert any(not torch.equal(x[:, m], y[:, m]) for x, y in zip(before, alone, strict=True))


@pytest.mark.parametrize("m", range(4))
@torch.no_grad()
def test_a_part_of_a_modality_serves_that_modality_alone(net: Backbone, m: int) -> None:
    if not branches(net) or type(net).__name__ in RUNS_ABSENT:
        pytest.skip("has no parts of its own for each modality, or runs all of them")
    image, present = image_for(net), torch.eye(4, dtype=torch.bool)[m : m + 1]
    before = net(image, present).logits
    # Were two parts swapped anywhere, one of these would serve the modality that is there.
    move(part for each in branches(net) for k, part in enumerate(each) if k != m)
    others = net(image, present).logits
    assert torch.equal(others, before)
    move(each[m] for each in branches(net))
    assert not torch.allclose(net(image, present).logits, before, rtol=1e-3, atol=1e-3)


# Law 3: per sample


@torch.no_grad()
def test_mixed_batch_equals_its_rows(net: Backbone) -> None:
    present = rows((True, False, False, False), (False, True, True, True), (True, True, True, True))
    image = image_for(net, batch=3)
    together = net(image, present).logits
    for row in range(3):
        alone = net(image[row : row + 1], present[row : row + 1]).logits
        torch.testing.assert_close(together[row : row + 1], alone, **ROUNDING)


@torch.no_grad()
def test_nan_stays_in_no_other_row(net: Backbone) -> None:
    image, present = image_for(net, batch=2), torch.ones(2, 4, dtype=torch.bool)
    clean = net(image, present).logits
    image[0, 2] = float("nan")
    assert torch.equal(net(image, present).logits[1], clean[1])


# Law 4: deterministic


@torch.no_grad()
def test_two_calls_agree_bit_for_bit(net: Backbone) -> None:
    image, present = image_for(net), rows((True, False, True, True))
    assert torch.equal(net(image, present).logits, net(image, present).logits)


def test_seeded_training_step_repeats_bit_for_bit(net: Backbone) -> None:
    image, present = image_for(net), rows((True, False, True, True))
    runs = []
    for _ in range(2):
        torch.manual_seed(5)
        net.train().zero_grad()
        objective(net(image, present, available=present)).backward()
        runs.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


# Law 5: encode once


@torch.no_grad()
def test_encode_once_equals_naive_bit_for_bit(net: Backbone) -> None:
    image = image_for(net)
    features = net.encode(image, torch.ones(1, 4, dtype=torch.bool))
    for subset in SUBSETS:
        present = rows(subset)
        once = net.decode(features.restrict(present)).logits
        assert torch.equal(once, net(image, present).logits), subset_name(subset)


@pytest.mark.parametrize("count", [2, 15])
@torch.no_grad()
def test_subsets_in_one_batch_equal_single_ones(net: Backbone, count: int) -> None:
    features = net.encode(image_for(net), torch.ones(1, 4, dtype=torch.bool))
    some = rows(*SUBSETS[:count])
    logits = net.decode_subsets(features, some)  # S 1 C D H W
    for row in range(count):
        alone = net.decode(features.restrict(some[row : row + 1])).logits
        torch.testing.assert_close(logits[row], alone, **ROUNDING)


# What may fill in for an absent modality


@torch.no_grad()
def test_filling_an_absent_slot_of_a_fused_level_matters(net: Backbone) -> None:
    some, complete = rows((True, False, True, False)), torch.ones(1, 4, dtype=torch.bool)
    features = net.encode(image_for(net), complete).restrict(some)
    before = net.decode(features).logits
    for level in net.fused_levels:
        present = list(features.present)
        present[level] = complete
        after = net.decode(replace(features, present=tuple(present))).logits
        assert (after - before).abs().max() > 1e-3 * before.std(), level


# Learning


def test_gradient_reaches_every_parameter(net: Backbone) -> None:
    image, present = image_for(net, batch=2), torch.ones(2, 4, dtype=torch.bool)
    objective(net.train()(image, present, available=present)).backward()
    pattern, _ = UNTRAINED.get(type(net).__name__, ("$^", ""))
    for name, parameter in net.named_parameters():
        if parameter.requires_grad and not re.search(pattern, name):
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_every_parameter_takes_part_whatever_is_present(net: Backbone) -> None:
    present = rows((False, False, True, False))
    objective(net.train()(image_for(net), present, available=present)).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None or not parameter.requires_grad, name


@torch.no_grad()
def test_evaluation_computes_the_prediction_alone(net: Backbone) -> None:
    output = net(image_for(net), torch.ones(1, 4, dtype=torch.bool))
    assert output.auxiliary == ()
    assert output.penalties == {}


@pytest.mark.parametrize("training", [False, True])
def test_embedding_is_what_the_head_reads(net: Backbone, training: bool) -> None:
    image = image_for(net, batch=2)
    output = net.train(training)(image, torch.ones(2, 4, dtype=torch.bool))
    assert output.embedding is not None
    assert output.embedding.shape[2:] == image.shape[2:]
    size = output.logits.shape[1], output.embedding.shape[1]
    heads = [m for m in net.modules() if isinstance(m, torch.nn.Conv3d) and m.kernel_size[0] == 1]
    fits = [head for head in heads if (head.out_channels, head.in_channels) == size]
    assert any(torch.equal(head(output.embedding), output.logits) for head in fits)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("node", networks().values(), ids=networks())
@torch.no_grad()
def test_output_has_the_shape_of_the_image(node: DictConfig, channels: int) -> None:
    network = build(node, out_channels=channels)
    image = image_for(network)
    logits = network(image, torch.ones(1, 4, dtype=torch.bool)).logits
    assert logits.shape == (1, channels, *image.shape[2:])


# Boundary


def test_sample_without_modality_is_refused(net: Backbone) -> None:
    present = rows((True, False, False, False), (False, False, False, False))
    with pytest.raises(ValueError, match=r"row \[1\]"):
        net(image_for(net, batch=2), present)


def test_wrong_size_is_refused_with_one_that_fits(net: Backbone) -> None:
    if net.divisor == 1:
        pytest.skip("takes any size")
    size = image_for(net).shape[-1]
    image = torch.zeros(1, 4, size, size, size - 1)
    with pytest.raises(ValueError, match=rf"\({size}, {size}, {size}\)"):
        net(image, torch.ones(1, 4, dtype=torch.bool))


@pytest.mark.parametrize("size", [0, -1, 1])
@pytest.mark.parametrize("node", networks().values(), ids=networks())
def test_impossible_sizes_are_refused_before_any_work(node: DictConfig, size: int) -> None:
    takes = inspect.signature(type(build(node))).parameters.values()
    for name in [argument.name for argument in takes if argument.annotation is int]:
        with suppress(ConfigError):
            network = build(node, **{name: size})
            assert size > 0, f"{name}={size} was taken"
            network(image_for(network), torch.ones(1, 4, dtype=torch.bool))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_finite(net: Backbone, dtype: torch.dtype) -> None:
    image, present = image_for(net), rows((True, False, True, False))
    with torch.autocast("cpu", dtype=dtype):
        half = net.train()(image, present, available=present)
        assert all(tensor.isfinite().all() for tensor in everything(half))
        with torch.no_grad():
            half = net.eval()(image, present)
    with torch.no_grad():
        full = net(image, present).logits
    assert (half.logits.float() - full).norm() < 0.2 * full.norm()


@torch.no_grad()
def test_channels_last_gives_the_same_numbers(net: Backbone) -> None:
    image, present = image_for(net), rows((True, False, True, True))
    plain = net(image, present).logits
    last = torch.channels_last_3d
    logits = net.to(memory_format=last)(image.contiguous(memory_format=last), present).logits
    torch.testing.assert_close(logits, plain, **ROUNDING)


@compiled
@torch.no_grad()
def test_encode_and_decode_compile_without_graph_break(net: Backbone) -> None:
    image, present = image_for(net), rows((True, False, True, False))
    encode = torch.compile(net.encode, fullgraph=True, backend="eager")
    decode = torch.compile(net.decode, fullgraph=True, backend="eager")
    torch.testing.assert_close(decode(encode(image, present)).logits, net(image, present).logits)


@compiled
def test_training_compiles_once_for_all_subsets(net: Backbone) -> None:
    """As `task.compile_net` compiles it, but for the compiler's last step."""
    counters.clear()
    image, everything = image_for(net), rows((True, True, True, True))
    net.train().compile(backend="eager")
    for subset in [
        (True, False, True, False),
        (False, True, False, False),
        (True, True, True, True),
    ]:
        objective(net(image, rows(subset), everything)).backward()
    assert not counters["graph_break"]
    assert not counters["recompiles"]
    assert counters["stats"]["unique_graphs"] == 1
