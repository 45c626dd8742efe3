"""How alike predictions are, and levels, of an image with and without some of its modalities."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from bts_lightning.networks.presence import full_precision

# Dice between predictions, as MONAI's.
SMOOTH = 1e-5


def agreement(maps: Tensor, target: Tensor) -> Tensor:
    """Give the Dice of each sample, averaged over channels."""
    shared = (maps * target).flatten(2).sum(dim=2)
    sizes = (maps + target).flatten(2).sum(dim=2)
    return ((2 * shared + SMOOTH) / (sizes + SMOOTH)).mean(dim=1)


def distance(x: Tensor, kept: Tensor) -> Tensor:
    """Give the mean absolute difference of each sample, S×B, from one of B."""
    apart = torch.unflatten(full_precision(x), 0, (-1, len(kept))) - full_precision(kept)
    return apart.abs().flatten(2).mean(dim=2).flatten()


def contrast(
    levels: Sequence[Tensor], complete: Sequence[Tensor], valid: Tensor, temperature: float = 0.5
) -> Tensor:
    """Pull what is incomplete to the complete image of its case, away from the next case (NT-Xent).

    Each level counts alike. Nothing pushes a pair against itself, as officially: the sum below
    holds the other case alone, which has no gradient.
    """
    total = []
    for incomplete, full in zip(levels, complete, strict=True):
        own = torch.stack([mean_direction(full), mean_direction(incomplete)], dim=1)  # B 2 C
        other = own.detach().roll(-1, dims=0)
        across = own @ other.mT / temperature  # B own other
        pairs = [(v[:, 0] * v[:, 1]).sum(dim=1, keepdim=True) / temperature for v in (own, other)]
        terms = torch.cat(
            [across.logsumexp(dim=2) - pairs[0], across.logsumexp(dim=1) - pairs[1]], dim=1
        )
        total.append(terms.mean(dim=1))  # B
    counts = valid & valid.roll(-1, dims=0) & (len(valid) > 1)
    return torch.where(counts, torch.stack(total).mean(dim=0), 0).mean()


def mean_direction(x: Tensor) -> Tensor:
    """Average over space, B×C, and scale to length 1."""
    return F.normalize(full_precision(x).mean(dim=(2, 3, 4)), dim=1)
