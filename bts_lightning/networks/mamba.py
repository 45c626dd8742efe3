"""The Mamba block: a state that each token writes into and reads, as the token itself says."""

import math
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bts_lightning.networks.presence import full_precision, without_autocast

# States that are worked on together stay in a processor's cache; a GPU wants many more.
IN_CACHE, ON_GPU = 2**18, 2**22


class Mamba(nn.Module):
    """Mix a row of tokens, each with those before it (Gu and Dao 2023).

    The plain scan equals the kernel of `mamba_ssm`, which is taken on a GPU where it is installed.

    Args:
        width: channels of a token.
        states: that each inner channel keeps.
        taps: tokens that the causal convolution sees.
        expand: inner channels for each channel.
    """

    def __init__(self, width: int, *, states: int, taps: int = 4, expand: int = 2) -> None:
        super().__init__()
        inner, rank = expand * width, math.ceil(width / 16)
        self.sizes = [rank, states, states]
        self.enter = nn.Linear(width, 2 * inner, bias=False)
        self.convolve = nn.Conv1d(inner, inner, taps, groups=inner, padding=taps - 1)
        self.choose = nn.Linear(inner, sum(self.sizes), bias=False)
        self.step = nn.Linear(rank, inner)
        numbers = torch.arange(1, states + 1, dtype=torch.float32)
        self.log_rates = nn.Parameter(numbers.log().repeat(inner, 1))  # E N
        self.skip = nn.Parameter(torch.ones(inner))
        self.leave = nn.Linear(inner, width, bias=False)
        nn.init.uniform_(self.step.weight, -(rank**-0.5), rank**-0.5)
        first = torch.empty(inner).uniform_(math.log(1e-3), math.log(0.1)).exp().clamp_min(1e-4)
        with torch.no_grad():
            # The softplus of it is `first`.
            self.step.bias.copy_(first + (-torch.expm1(-first)).log())

    def forward(self, tokens: Tensor) -> Tensor:
        """Answer each token, B×L×C."""
        x, gate = self.enter(tokens).chunk(2, dim=-1)
        x = F.silu(self.convolve(x.mT)[..., : tokens.shape[1]].mT)
        low, write, read = self.choose(x).split(self.sizes, dim=-1)
        step = F.softplus(self.step(low))
        rates = -self.log_rates.exp()
        with without_autocast(tokens):
            scan = _kernel_scan if x.is_cuda and _has_kernel() else selective_scan
            given = (full_precision(part) for part in (x, step, rates, write, read))
            y: Tensor = scan(*given)
        answer: Tensor = self.leave((y + self.skip * x) * F.silu(gate))
        return answer

    @staticmethod
    def translations() -> dict[Any, Any]:
        """Give the scan in the operators of ONNX."""
        from bts_lightning.networks import scan  # needs the extra `onnx`

        return {selective_scan._opoverload: scan.selective_scan}


@cache
def _has_kernel() -> bool:
    return find_spec("mamba_ssm") is not None


def _kernel_scan(x: Tensor, step: Tensor, rates: Tensor, write: Tensor, read: Tensor) -> Tensor:
    kernel: Any = import_module("mamba_ssm.ops.selective_scan_interface")
    across = (part.mT.contiguous() for part in (write, read))
    y: Tensor = kernel.selective_scan_fn(x.mT.contiguous(), step.mT.contiguous(), rates, *across)
    return y.mT


# One operation for the compiler, which would lay out a step for each token.
@torch.library.custom_op("bts_lightning::selective_scan", mutates_args=())
def selective_scan(x: Tensor, step: Tensor, rates: Tensor, write: Tensor, read: Tensor) -> Tensor:
    """Let states decay, be written and be read: h ← exp(step·rates)·h + step·x·writeᵀ, y = h·read.

    Args:
        x: B×L×E.
        step: B×L×E.
        rates: E×N, below zero.
        write: B×L×N.
        read: B×L×N.
    """
    chunks = _Chunks(x, step, rates, write, read)
    rows = torch.empty_like(chunks.x)
    states = chunks.starts()
    for k in range(len(rows)):
        states = chunks.advance(states, k)
        rows[k] = torch.einsum("...en,...n->...e", states, chunks.read[k])
    return chunks.together(rows)


@selective_scan.register_fake
def _(x: Tensor, step: Tensor, rates: Tensor, write: Tensor, read: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("bts_lightning::selective_scan_backward", mutates_args=())
def _backward_scan(
    x: Tensor, step: Tensor, rates: Tensor, write: Tensor, read: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Give the gradients; states are computed again, some at a time, and never all kept."""
    chunks = _Chunks(x, step, rates, write, read)
    arriving = chunks.apart(gradient)
    length = len(arriving)
    # What the states after the last step of each chunk are asked for by later chunks.
    asked = torch.zeros_like(chunks.nothing)
    for k in reversed(range(length)):
        asked = chunks.decay(k) * (asked + arriving[k].unsqueeze(-1) * chunks.read[k].unsqueeze(-2))
    asked = chunks.carry(asked, backwards=True)
    segment = max(1, math.isqrt(length))
    kept, states = [], chunks.starts()
    for k in range(length):
        if k % segment == 0:
            kept.append(states)
        states = chunks.advance(states, k)
    found = [torch.empty_like(part) for part in (chunks.x, chunks.step, chunks.write, chunks.read)]
    for_x, for_step, for_write, for_read = found
    for_rates = torch.zeros_like(rates)
    for number in reversed(range(len(kept))):
        some = range(number * segment, min(length, (number + 1) * segment))
        passed = [kept[number]]
        for k in some:
            passed.append(chunks.advance(passed[-1], k))
        for k in reversed(some):
            before, after = passed[k - some.start], passed[k - some.start + 1]
            for_read[k] = torch.einsum("...en,...e->...n", after, arriving[k])
            asked = asked + arriving[k].unsqueeze(-1) * chunks.read[k].unsqueeze(-2)
            decay = chunks.decay(k)
            written = torch.einsum("...en,...n->...e", asked, chunks.write[k])
            for_write[k] = torch.einsum("...en,...e->...n", asked, chunks.step[k] * chunks.x[k])
            for_x[k] = chunks.step[k] * written
            faded = asked * before * decay
            for_step[k] = chunks.x[k] * written + (faded * rates).sum(-1)
            for_rates += (faded * chunks.step[k].unsqueeze(-1)).sum((0, 1))
            asked = asked * decay
    of_x, of_step, of_write, of_read = (chunks.together(part) for part in found)
    return of_x, of_step, for_rates, of_write, of_read


@_backward_scan.register_fake
def _(
    x: Tensor, step: Tensor, rates: Tensor, write: Tensor, read: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    like = [torch.empty_like(part) for part in (x, step, rates, write, read)]
    return like[0], like[1], like[2], like[3], like[4]


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(context: Any, gradient: Tensor) -> tuple[Tensor, ...]:
    return tuple(_backward_scan(*context.saved_tensors, gradient))


selective_scan.register_autograd(_differentiate, setup_context=_keep)


class _Chunks:
    """Cut rows of tokens into chunks that are worked on side by side: K×B×G×…, K steps of each.

    A step of one row alone would be a handful of numbers. What one chunk leaves to the next is
    known from its total decay and its last states from zero, in a short loop over chunks.
    """

    def __init__(self, x: Tensor, step: Tensor, rates: Tensor, write: Tensor, read: Tensor) -> None:
        self.length = x.shape[1]
        room = ON_GPU if x.is_cuda else IN_CACHE
        # As many chunks as steps at most: both are loops.
        self.count = max(1, min(room // (x.shape[0] * rates.numel()), math.isqrt(self.length)))
        self.x, self.step, self.write, self.read = map(self.apart, (x, step, write, read))
        self.rates = rates
        self.nothing = x.new_zeros(x.shape[0], self.count, *rates.shape)  # B G E N

    def apart(self, rows: Tensor) -> Tensor:
        """Cut B×L×C into K×B×G×C; steps of zero at the end change no state."""
        steps = -(-self.length // self.count)
        padded = F.pad(rows, (0, 0, 0, steps * self.count - self.length))
        return torch.unflatten(padded, 1, (self.count, steps)).permute(2, 0, 1, 3).contiguous()

    def together(self, rows: Tensor) -> Tensor:
        """Join K×B×G×C to B×L×C."""
        return rows.permute(1, 2, 0, 3).flatten(1, 2)[:, : self.length].contiguous()

    def decay(self, k: int) -> Tensor:
        """Give what is left of each state, B×G×E×N."""
        return (self.step[k].unsqueeze(-1) * self.rates).exp()

    def advance(self, states: Tensor, k: int) -> Tensor:
        """Take one step in every chunk."""
        written = (self.step[k] * self.x[k]).unsqueeze(-1) * self.write[k].unsqueeze(-2)
        return torch.addcmul(written, self.decay(k), states)

    def starts(self) -> Tensor:
        """Give the states before the first step of each chunk."""
        if self.count == 1:
            return self.nothing
        states = self.nothing
        for k in range(len(self.step)):
            states = self.advance(states, k)
        return self.carry(states)

    def carry(self, own: Tensor, *, backwards: bool = False) -> Tensor:
        """Hand on from chunk to chunk what each adds, faded by those in between."""
        total = (self.step.sum(0).unsqueeze(-1) * self.rates).exp()  # B G E N
        carried, given = own.new_zeros(own[:, 0].shape), torch.empty_like(own)
        for g in reversed(range(self.count)) if backwards else range(self.count):
            given[:, g] = carried
            carried = torch.addcmul(own[:, g], total[:, g], carried)
        return given
