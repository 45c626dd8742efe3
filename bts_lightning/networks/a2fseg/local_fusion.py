"""Fuse one case for many subsets, where the fusion looks no further than a voxel's neighbours."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from math import e, log2

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bts_lightning.networks.a2fseg.modality_attention import ModalityAttention
from bts_lightning.networks.layers import bias_of
from bts_lightning.networks.presence import full_precision

# Of what the subsets share, at a time. A whole window of 128³ would need 5 GB in full precision.
SHARED_BYTES = 2**30
# Features by modality.
Parts = Mapping[int, Tensor]


def average_heads(head: nn.Module, finest: Sequence[Tensor], subsets: Tensor) -> Tensor:
    """Give the head of each subset's average; it is linear without bias, so it may go first.

    Args:
        head: a convolution of one voxel.
        finest: per modality 1×C×D×H×W.
        subsets: S×M bool, on the CPU.
    """
    own = {m: head(finest[m]) for m in _used(subsets)}
    return torch.cat([_mean(own, subset) for subset in _members(subsets)])


def attend(
    attention: ModalityAttention, head: nn.Module, finest: Sequence[Tensor], subsets: Tensor
) -> Tensor:
    """Give the head of each subset's attended features, where the reference is their average.

    The score of a modality is one convolution, of its own features beside the reference. Both are
    linear, so the score within a subset is a sum of what was computed once for each pair of
    modalities. The arguments are those of `average_heads`.
    """
    slabs = []
    for first, last in _slabs(finest[0], terms=(len(_used(subsets)) + 1) ** 2):
        own, shares = _score_terms(attention, finest, _used(subsets), first, last)
        inner = {m: finest[m][:, :, first:last] for m in own}
        fused = (_fuse(own, shares, inner, subset) for subset in _members(subsets))
        slabs.append(torch.cat([head(x.to(finest[0].dtype)) for x in fused]))
    return slabs[0] if len(slabs) == 1 else torch.cat(slabs, dim=2)


def _score_terms(
    attention: ModalityAttention,
    finest: Sequence[Tensor],
    used: Sequence[int],
    first: int,
    last: int,
) -> tuple[Parts, Mapping[int, Parts]]:
    """Give, for some planes, each score's own term, and for each score that of each modality."""
    convs = {m: attention.convolution(m) for m in used}
    width, depth = attention.width, finest[0].shape[2]
    own: dict[int, Tensor] = {}
    shares: dict[int, dict[int, Tensor]] = {m: {} for m in used}
    for k in used:
        weights = [convs[k].weight[:, :width], *(convs[m].weight[:, width:] for m in used)]
        planes = finest[k][:, :, max(0, first - 1) : last + 1]
        # Beyond the window the convolution sees zeros, as it does along the other axes.
        planes = F.pad(planes, (0, 0, 0, 0, int(first == 0), int(last == depth)))
        terms = F.conv3d(planes, torch.cat(weights), padding=(0, 1, 1)).chunk(1 + len(used), dim=1)
        own[k] = terms[0] + bias_of(convs[k])
        for m, term in zip(used, terms[1:], strict=True):
            shares[m][k] = term
    return own, shares


def _fuse(own: Parts, shares: Mapping[int, Parts], inner: Parts, subset: Sequence[int]) -> Tensor:
    fused = total = inner[subset[0]]
    if len(subset) == 1:  # a softmax over one is one
        return fused
    for m in subset:
        # A new tensor, and a large one: from here on everything happens in place.
        score = full_precision(_mean(shares[m], subset).add_(own[m]))
        # The exponential of a sigmoid cannot overflow; `exp` takes four times as long on a CPU.
        weight = score.sigmoid_().mul_(log2(e)).exp2_()
        if m == subset[0]:
            fused, total = weight * inner[m], weight
        else:
            fused.addcmul_(weight, inner[m])
            total.add_(weight)
    return fused.div_(total)


def _mean(parts: Parts, subset: Sequence[int]) -> Tensor:
    total = parts[subset[0]].clone()
    for m in subset[1:]:
        total += parts[m]
    return total.div_(len(subset))


def _members(subsets: Tensor) -> list[list[int]]:
    return [[m for m, here in enumerate(flags) if here] for flags in subsets.tolist()]


def _used(subsets: Tensor) -> list[int]:
    return [m for m, here in enumerate(subsets.any(dim=0).tolist()) if here]


def _slabs(x: Tensor, terms: int) -> Iterator[tuple[int, int]]:
    """Cut the depth into even parts of which so many terms fit."""
    depth = x.shape[2]
    most = max(1, SHARED_BYTES // (terms * x[:, :, 0].numel() * x.element_size()))
    count = -(-depth // most)
    yield from pairwise(round(depth * i / count) for i in range(count + 1))
