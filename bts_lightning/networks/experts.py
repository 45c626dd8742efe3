"""Mixtures of experts, and the two layers of AMoE-BTS that ask them."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bts_lightning.networks.attention import attention_branch, to_tokens, to_volume
from bts_lightning.networks.backbone import Weigher

ExpertMemory = Literal["plain", "checkpoint", "chunked"]
# Tokens that `chunked` treats at a time: with 6 experts of 256 about 0.4 GB in single precision.
CHUNK = 2**15
GAM_DROPOUT = 0.01


class Experts(nn.Module):
    """Add up what several two-layer perceptrons make of each token, weighted by gates.

    All experts see all tokens, as in the official code; a gate of zero hides the answer.

    Args:
        memory: `plain` keeps all hidden maps for the backward pass; `checkpoint` keeps none and
            computes one expert at a time again; `chunked` does so for some tokens at a time.
    """

    def __init__(
        self, experts: int, width: int, hidden: int, *, dropout: float, memory: ExpertMemory
    ) -> None:
        super().__init__()
        self.memory = memory
        self.experts = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, hidden),
                nn.GELU(),
                nn.Dropout(dropout),
                nn.Linear(hidden, width),
                nn.Dropout(dropout),
            )
            for _ in range(experts)
        )

    def forward(self, tokens: Tensor, gates: Tensor) -> Tensor:
        """Map tokens B×N×C with gates B×N×E to B×N×C."""
        if self.memory != "chunked":
            return self.answer(tokens, gates, again=self.memory == "checkpoint")
        pairs = zip(torch.split(tokens, CHUNK, 1), torch.split(gates, CHUNK, 1), strict=True)
        return torch.cat([self.answer(t, g, again=True) for t, g in pairs], dim=1)

    def answer(self, tokens: Tensor, gates: Tensor, *, again: bool) -> Tensor:
        """Ask one expert after the other; `again` forgets its hidden map until it is needed."""
        again = again and torch.is_grad_enabled()
        total: Tensor | None = None
        for index, expert in enumerate(self.experts):
            answer = checkpoint(expert, tokens, use_reentrant=False) if again else expert(tokens)
            weighted = gates[..., index : index + 1] * answer
            total = weighted if total is None else total + weighted
        assert total is not None  # there is at least one expert
        return total


class Mixer(nn.Module):
    """Look at other voxels, then ask the experts that the gate chooses for each voxel (LAM).

    Args:
        around: the other voxels as the mean of the neighbours, or by a table of all.
        weigher: hears the gates.
    """

    def __init__(
        self,
        width: int,
        experts: Experts,
        *,
        gate: nn.Linear,
        top_k: int,
        renormalise: bool,
        around: nn.Module,
        weigher: Weigher,
    ) -> None:
        super().__init__()
        self.top_k = top_k
        self.renormalise = renormalise
        self.around = around
        self.weigher = weigher
        self.before_average = nn.LayerNorm(width, eps=1e-6)
        self.before_experts = nn.LayerNorm(width, eps=1e-6)
        self.gate = gate
        self.experts = experts

    def forward(self, x: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        """Give the voxels B×D×H×W×C, and how unevenly the experts were asked, B."""
        y = self.before_average(x)
        # PoolFormer subtracts its input from the average; this network adds it.
        x = x + y + self.around(y)
        y = self.before_experts(x) * where
        shares = (self.gate(y) * where).softmax(dim=-1)
        gates = keep_largest(shares, self.top_k)
        uneven = imbalance(shares.flatten(1, 3), gates.flatten(1, 3), self.top_k)
        if self.renormalise:
            gates = gates / gates.sum(dim=-1, keepdim=True)
        if self.weigher.listener:
            self.weigher.listener(gates.movedim(-1, 1).unsqueeze(1))  # B 1 E D H W
        answers = self.experts(y.flatten(1, 3), gates.flatten(1, 3))
        mixed: Tensor = x + answers.view(x.shape)
        return mixed, uneven


class Neighbours(nn.Module):
    """Average over 3³ voxels, as the official code does; zeros beyond the border count."""

    def forward(self, x: Tensor) -> Tensor:
        # Padded here because the pooling itself refuses volumes below 3³.
        padded = F.pad(x.movedim(-1, 1), (1,) * 6)
        return F.avg_pool3d(padded, 3, stride=1).movedim(1, -1)


class GlobalPool(nn.Module):
    """Scale and shift the mean of each channel by tables with an entry a voxel, as in the figure.

    That is NestedFormer's linear layer from one mean to all voxels, which all channels share. The
    table is stretched over grids of another size.
    """

    def __init__(self, grid: int) -> None:
        super().__init__()
        # The start of a linear layer with one input.
        self.table = nn.Parameter(torch.empty(1, 2, grid, grid, grid).uniform_(-1, 1))

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[1:4]
        table: Tensor = self.table
        if size != table.shape[2:]:
            table = F.interpolate(table, size=size, mode="trilinear")
        scale, shift = table[0].to(x.dtype).unsqueeze(-1)  # D H W 1
        return x.mean(dim=(1, 2, 3), keepdim=True) * scale + shift


class GlobalModule(nn.Module):
    """Attend over the tokens of all modalities together, then ask experts about each (GAM)."""

    def __init__(
        self,
        width: int,
        experts: Experts,
        *,
        gate: nn.Linear,
        top_k: int,
        plain_sum: bool,
        heads: int,
        grid: int,
        weigher: Weigher,
    ) -> None:
        super().__init__()
        self.weigher = weigher
        self.grid = (grid,) * 3
        self.top_k = top_k
        self.plain_sum = plain_sum
        self.project = nn.Conv3d(width, width, 1)
        self.positions = nn.Parameter(torch.zeros(1, grid**3, width))
        self.attend = attention_branch(width, heads=heads, dropout=GAM_DROPOUT)
        self.before_experts = nn.LayerNorm(width)
        self.gate = gate
        self.experts = experts

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give B×C×D×H×W, and how unevenly the experts were asked, B."""
        size = tuple(x.shape[2:])
        tokens = to_tokens(self.project(x)) + self.positions_for(size)
        tokens = tokens + self.attend(tokens)
        y = self.before_experts(tokens)
        logits = self.gate(y)
        gates = self.gates(logits)
        if self.weigher.listener:
            self.weigher.listener(to_volume(gates, size).unsqueeze(1))  # B 1 E D H W
        uneven = imbalance(logits.softmax(dim=-1), gates, self.top_k)
        return to_volume(tokens + self.experts(y, gates), size), uneven

    def gates(self, logits: Tensor) -> Tensor:
        """Weigh the chosen experts of each token."""
        values, indices = logits.topk(self.top_k, dim=-1)
        shares = values.softmax(dim=-1)
        if self.plain_sum:
            # One for each, yet connected to the gate, as in the official code.
            shares = shares.sum(dim=-1, keepdim=True).expand_as(values)
        return torch.zeros_like(logits, dtype=shares.dtype).scatter(-1, indices, shares)

    def positions_for(self, size: tuple[int, ...]) -> Tensor:
        """Stretch the position table over a grid of another size."""
        if size == self.grid:
            return self.positions
        table = to_volume(self.positions, self.grid)
        return to_tokens(F.interpolate(table, size=size, mode="trilinear"))


def imbalance(shares: Tensor, gates: Tensor, k: int) -> Tensor:
    """Say for each sample how unevenly B×N×E gates choose k experts: 1 where all are asked alike.

    The number of experts times the sum, over experts, of how often one is chosen and the mean of
    its share: the load-balancing loss of Switch Transformers (Fedus et al. 2022), by sample, so
    that a sample counts the same in any batch.
    """
    chosen = (gates.detach() > 0).to(shares.dtype).mean(dim=1) / k  # B E
    return shares.shape[-1] * (chosen * shares.mean(dim=1)).sum(dim=-1)


def keep_largest(shares: Tensor, k: int) -> Tensor:
    """Set all but the k largest of the last axis to zero."""
    values, indices = shares.topk(k, dim=-1)
    return torch.zeros_like(shares).scatter(-1, indices, values)
