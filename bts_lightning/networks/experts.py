"""Mixtures of experts: which experts a token asks, and what they answer."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

ExpertMemory = Literal["plain", "checkpoint", "chunked"]
# Tokens that `chunked` treats at a time: with 6 experts of 256 about 0.4 GB in single precision.
CHUNK = 2**15


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
        pairs = zip(tokens.split(CHUNK, dim=1), gates.split(CHUNK, dim=1), strict=True)
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


def keep_largest(shares: Tensor, k: int) -> Tensor:
    """Set all but the k largest of the last axis to zero."""
    values, indices = shares.topk(k, dim=-1)
    return torch.zeros_like(shares).scatter(-1, indices, values)
