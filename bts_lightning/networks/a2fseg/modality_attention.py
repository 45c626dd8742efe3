"""The attention of A2FSeg: a softmax over the scores of the present modalities."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from bts_lightning.modalities import MODALITIES
from bts_lightning.networks.backbone import Weigher
from bts_lightning.networks.layers import Block
from bts_lightning.networks.presence import (
    Presence,
    Rows,
    add_rows,
    full_precision,
    is_nobody,
    nothing_of,
    pick,
    spread,
)

Variant = Literal["official", "post", "decoder", "base", "paper"]
# Scores a modality, by number, against a reference.
Score = Callable[[int, Tensor], Tensor]


class ModalityAttention(nn.ModuleList):
    """Weigh the present modalities by a softmax over their scores, per voxel and channel."""

    def __init__(self, width: int, variant: Variant) -> None:
        super().__init__(scorer(width, variant) for _ in MODALITIES)
        self.width = width
        # exp(sigmoid) cannot overflow.
        self.is_bounded = variant != "official"
        self.weigher = Weigher("attention", level=0)

    def forward(
        self,
        x: Sequence[Tensor],
        presence: Presence,
        reference: Tensor,
        score_of: Score | None = None,
    ) -> Tensor:
        """Score each modality of `x` against the reference, and sum them with their weights.

        `score_of` gives the same scores in another way.
        """
        scores: list[tuple[int, Rows, Tensor]] = []
        tie = reference.new_zeros(())
        for m, layers in enumerate(self):
            rows = presence.rows(m)
            if is_nobody(rows):
                tie = tie + nothing_of(layers) if self.training else tie
                continue
            if score_of is None:
                seen = torch.cat([presence.own(x[m], m), pick(reference, rows)], dim=1)
                score = full_precision(layers(seen))
            else:
                score = full_precision(score_of(m, reference))
            if not isinstance(rows, slice):
                score = torch.where(pick(presence.keep(m), rows), score, -torch.inf)
            scores.append((m, rows, score))

        top = None if self.is_bounded else largest(scores, reference.shape[0])
        total = full_precision(torch.zeros_like(reference))
        fused = torch.zeros_like(total)
        heard: list[tuple[int, Rows, Tensor]] = []
        while scores:  # taken off, so that each is gone when it has been added
            m, rows, score = scores.pop(0)
            weight = score.exp() if top is None else (score - pick(top, rows)).exp_()
            own = presence.own(x[m], m)
            total = add_rows(total, rows, weight)
            fused = add_rows(fused, rows, weight * own)
            if self.weigher.listener:
                heard.append((m, rows, weight))
        if self.weigher.listener:
            self.weigher.listener(self.shares(heard, total))
        return (fused / total).to(reference.dtype) + tie

    def shares(self, weights: Sequence[tuple[int, Rows, Tensor]], total: Tensor) -> Tensor:
        """Give the weights of the softmax, averaged over channels, B×M×D×H×W."""
        shares = total.new_zeros(len(total), len(self), *total.shape[2:])
        for m, rows, weight in weights:
            shares[:, m] = (spread(weight, rows, len(total)) / total).mean(dim=1)
        return shares


def scorer(width: int, variant: Variant) -> nn.Sequential:
    """Make what scores one modality, beside the reference."""
    if variant == "paper":
        return nn.Sequential(nn.Conv3d(2 * width, width, 3, padding=1), nn.Sigmoid())
    last = nn.LeakyReLU(0.01) if variant == "official" else nn.Sigmoid()
    return nn.Sequential(
        *Block(2 * width, width), nn.Conv3d(width, width, kernel_size=3, padding=1), last
    )


@torch.no_grad()
def largest(scores: Sequence[tuple[int, Rows, Tensor]], batch: int) -> Tensor:
    """Give the largest score per row, voxel and channel, which a softmax may subtract."""
    _, rows, score = scores[0]
    top = spread(score, rows, batch, -torch.inf)
    for _, rows, score in scores[1:]:
        top = torch.maximum(top, spread(score, rows, batch, -torch.inf))
    return top
