"""Gradient surgery: take out of the gradient of each loss what points against that of another."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn


def operated_gradient(
    losses: Sequence[Tensor], parameters: Sequence[nn.Parameter], chance: np.random.Generator
) -> list[Tensor]:
    """Give the sum of the gradients of some losses, one tensor a parameter, without conflicts.

    Yu et al.: Gradient Surgery for Multi-Task Learning, NeurIPS 2020, arXiv 2001.06782. A gradient
    meets all others in random order; where its product with one is negative, its part along that
    one is taken out. One gradient a loss is held in memory, and the losses are differentiated one
    after the other.

    Args:
        losses: of this step, as many on each rank.
        parameters: what learns.
        chance: gives the order; every rank needs the same.
    """
    rows = _mean_over_ranks(_gradients(losses, parameters))  # K losses × all weights
    # The products of all pairs suffice, since what is projected is a mix of the rows; its small
    # steps, 225 for 15 losses, are faster on a CPU. A matrix product might be rounded to TF32.
    gram = torch.stack([(rows * row).sum(dim=1) for row in rows]).double().cpu().numpy()
    orders = [chance.permutation(len(rows)) for _ in rows]
    total = torch.zeros_like(rows[0])
    for share, row in zip(projected(gram, orders).sum(axis=0), rows, strict=True):
        total += float(share) * row
    sizes = [parameter.numel() for parameter in parameters]
    parts = zip(torch.split(total, sizes), parameters, strict=True)
    return [part.view_as(parameter).to(parameter.dtype) for part, parameter in parts]


def projected(
    gram: NDArray[np.float64], orders: Sequence[Sequence[int] | NDArray[np.int64]]
) -> NDArray[np.float64]:
    """Say of each projected gradient, K×K, how much of each original one it holds.

    Args:
        gram: the products of all pairs of gradients.
        orders: in which order each meets all, itself included.
    """
    shares = np.eye(len(gram))
    for share, order in zip(shares, orders, strict=True):
        for other in order:
            product = share @ gram[:, other]
            if product < 0:
                share[other] -= product / gram[other, other]
    return shares


def _gradients(losses: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> Tensor:
    size = sum(parameter.numel() for parameter in parameters)
    wide = torch.promote_types(parameters[0].dtype, torch.float32)
    rows = torch.zeros(len(losses), size, dtype=wide, device=parameters[0].device)
    for row, loss in zip(rows, losses, strict=True):
        if loss.requires_grad:  # a penalty may be a plain zero
            found = torch.autograd.grad(
                loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            torch.cat([x.flatten().to(wide) for x in found], out=row)
    return rows


def _mean_over_ranks(rows: Tensor) -> Tensor:
    """Average as data-parallel training does: what conflicts is asked of the whole batch."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(rows)
        rows /= distributed.get_world_size()
    return rows
