import numpy as np
import pytest
import torch
from torch import Tensor

from bts_lightning.networks import mamba
from bts_lightning.networks.imfuse import FusionBlock, IMFuse
from bts_lightning.networks.mamba import Mamba, selective_scan
from tests.golden.fill_rule import fill, kind_of, noise
from tests.networks.conformity import FOLDER, read, relative


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 64_388_120 - 3_221_504),
        ({"first_skip": False}, 47_343_624 - 2_958_848),
        ({"mamba_skip": False, "interleaved": False}, 64_404_440 - 22_356_616 - 3_221_504),
    ],
)
def test_full_width_has_the_official_number_of_weights_without_the_unused(
    options: dict[str, bool], count: int
) -> None:
    with torch.device("meta"):
        net = IMFuse(**options)
    assert sum(p.numel() for p in net.parameters()) == count


def plain(x: Tensor, step: Tensor, rates: Tensor, write: Tensor, read: Tensor) -> Tensor:
    """Take one step after the other, as it is written in the paper."""
    states, rows = x.new_zeros(len(x), *rates.shape), []
    for t in range(x.shape[1]):
        states = states * torch.exp(step[:, t, :, None] * rates)
        states = states + (step[:, t] * x[:, t])[..., None] * write[:, t, None, :]
        rows.append((states * read[:, t, None, :]).sum(-1))
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize(
    ("batch", "length", "room"), [(2, 37, 2**18), (1, 200, 60), (2, 500, 100), (1, 1, 8), (1, 3, 1)]
)
def test_chunks_side_by_side_are_the_plain_scan(
    monkeypatch: pytest.MonkeyPatch, batch: int, length: int, room: int
) -> None:
    monkeypatch.setattr(mamba, "IN_CACHE", room)
    draw = torch.Generator().manual_seed(length)
    sizes = [(batch, length, 4), (batch, length, 4), (4, 3), (batch, length, 3), (batch, length, 3)]
    x, step, rates, write, read = (
        torch.randn(size, dtype=torch.double, generator=draw) for size in sizes
    )
    given = [x, step.abs() * 0.3, -rates.abs(), write, read]
    ours = [part.clone().requires_grad_() for part in given]
    theirs = [part.clone().requires_grad_() for part in given]
    found, expected = selective_scan(*ours), plain(*theirs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    gradient = torch.randn(found.shape, dtype=torch.double, generator=draw)
    found.backward(gradient)
    expected.backward(gradient)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-10, atol=1e-10)


def test_the_compiler_may_trust_what_is_said_of_the_scan() -> None:
    given = [torch.rand(size, requires_grad=True) for size in ((1, 9, 4), (1, 9, 4))]
    given += [-torch.rand(4, 3), torch.rand(1, 9, 3), torch.rand(1, 9, 3)]
    torch.library.opcheck(selective_scan, tuple(given))


@pytest.mark.parametrize(
    ("width", "length", "every"), [(8, 4000, 7), (64, 2000, 31), (512, 300, 23)]
)
def test_slow_states_are_those_of_the_library(width: int, length: int, every: int) -> None:
    states, inner = min(width, 256), 2 * width
    net = Mamba(width, states=states)
    first = 1e-3 * 100 ** (np.arange(inner) / (inner - 1))
    own = {
        "log_rates": np.tile(np.log(np.arange(1, states + 1)), (inner, 1)),
        "skip": np.ones(inner),
        "step.bias": first + np.log(-np.expm1(-first)),
    }
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            shape = tuple(parameter.shape)
            value = own.get(name, fill(shape, kind_of(name, shape)))
            less = 0.1 if name in ("step.weight", "choose.weight") else 1.0
            parameter.copy_(torch.from_numpy(less * value))
        tokens = noise(np.arange(length * width) + 7).reshape(1, length, width)
        found = net(torch.from_numpy(tokens.astype(np.float32)))[0, ::every].numpy()
    expected = read(FOLDER / "parts" / "imfuse_mamba_slow.npz")[f"out_C{width}"]
    assert relative(found, expected.reshape(found.shape)) < 1e-6


def test_a_token_sees_those_before_it_alone() -> None:
    torch.manual_seed(0)
    net, tokens = Mamba(8, states=8), torch.randn(1, 20, 8)
    later = tokens.clone()
    later[:, 10:] += 1
    with torch.no_grad():
        before, after = net(tokens), net(later)
    assert torch.equal(before[:, :10], after[:, :10])
    assert not torch.allclose(before[:, 10:], after[:, 10:])


@pytest.mark.parametrize("interleaved", [True, False])
def test_the_fused_token_of_a_voxel_comes_last(interleaved: bool) -> None:
    torch.manual_seed(0)
    block = FusionBlock(4, 8, interleaved=interleaved)
    maps = torch.randn(1, 4, 4, 2, 2, 2)
    changed = maps.clone()
    changed[..., 1, 1, 1] = torch.randn(1, 4, 4)
    with torch.no_grad():
        difference = (block(maps) - block(changed)).abs().sum(1)[0]
    # Voxel after voxel, only the last one has seen the last voxel; else all come after it.
    assert (difference[..., 1, 1, 1] > 0).all()
    assert bool((difference.flatten()[:7] == 0).all()) is interleaved
