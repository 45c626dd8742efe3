"""Exact shortcuts of A2FSeg for many subsets of one case: what is linear is computed once."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from math import e, log2

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bts_lightning.networks.a2fseg.modality_attention import ModalityAttention
from bts_lightning.networks.layers import Block, ExpandingPath
from bts_lightning.networks.presence import Presence, full_precision

# Of what the subsets share, at a time. A whole window of 128³ would need 5 GB in full precision.
SHARED_BYTES = 2**30
# Of finest features; from here on what is shared at once would take gigabytes.
MOST_BYTES = SHARED_BYTES // 2
# Features by modality.
Parts = Mapping[int, Tensor]


class OwnTerms:
    """Score modalities against many references; the part that reads a modality itself is kept."""

    def __init__(self, attention: ModalityAttention, finest: Sequence[Tensor]) -> None:
        self.attention = attention
        self.width = slice(attention.width)
        self.own = [_part(x, _first(attention, m), self.width) for m, x in enumerate(finest)]

    def __call__(self, m: int, reference: Tensor) -> Tensor:
        conv = _first(self.attention, m)
        other = _part(reference, conv, slice(self.attention.width, None))
        score = self.own[m] + other + _bias(conv)
        for layer in list(self.attention[m].children())[1:]:
            score = layer(score)
        return score


class SkipTerms:
    """Decode averages of levels; the part of each convolution that reads a modality is kept."""

    def __init__(self, decoder: ExpandingPath, levels: Sequence[Tensor]) -> None:
        self.decoder = decoder
        self.bottleneck = levels[-1].unbind(dim=1)
        self.terms = []
        for join, level in zip(decoder.joins, levels[:-1], strict=True):
            parts = level.unbind(dim=1)
            own = slice(parts[0].shape[1], None)
            self.terms.append([_part(x, _convolution(join, "0.0"), own) for x in parts])

    def reference(self, subset: Presence) -> Tensor:
        """Give what the decoder makes of the averages, at the finest level."""
        x = subset.average(self.bottleneck, len(self.terms))
        for step in reversed(range(len(self.terms))):
            first, second = self.decoder.joins[step]
            assert isinstance(first, Block)
            up, conv = self.decoder.ups[step](x), _convolution(first, "0")
            x = _part(up, conv, slice(up.shape[1])) + subset.average(self.terms[step], step)
            x += _bias(conv)
            for layer in list(first)[1:]:
                x = layer(x)
            x = second(x)
        return x


def fuse_locally(
    attention: ModalityAttention | None, head: nn.Module, finest: Sequence[Tensor], subsets: Tensor
) -> Tensor:
    """Give the logits of each subset where the reference is an average and nothing refines.

    The score of a modality is one convolution, of its own features beside the reference. Both are
    linear, so the score within a subset is a sum of what was computed once for each pair of
    modalities. Without attention the head is all, linear without a bias, so it may go first.

    Args:
        attention: of scorers with one convolution, or None for the average itself.
        head: a convolution of one voxel.
        finest: per modality 1×C×D×H×W.
        subsets: S×M bool, on the CPU.
    """
    members = [[m for m, here in enumerate(flags) if here] for flags in subsets.tolist()]
    used = sorted({m for subset in members for m in subset})
    if attention is None:
        heads = {m: head(finest[m]) for m in used}
        return torch.cat([_mean(heads, subset) for subset in members])
    slabs = []
    for first, last in _slabs(finest[0], terms=(len(used) + 1) ** 2):
        own, shares = _score_terms(attention, finest, used, first, last)
        inner = {m: finest[m][:, :, first:last] for m in own}
        fused = (_fuse(own, shares, inner, subset) for subset in members)
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
    convs = {m: _first(attention, m) for m in used}
    width, depth = attention.width, finest[0].shape[2]
    own: dict[int, Tensor] = {}
    shares: dict[int, dict[int, Tensor]] = {m: {} for m in used}
    for k in used:
        weights = [convs[k].weight[:, :width], *(convs[m].weight[:, width:] for m in used)]
        planes = finest[k][:, :, max(0, first - 1) : last + 1]
        # Beyond the window the convolution sees zeros, as it does along the other axes.
        planes = F.pad(planes, (0, 0, 0, 0, int(first == 0), int(last == depth)))
        terms = F.conv3d(planes, torch.cat(weights), padding=(0, 1, 1)).chunk(1 + len(used), dim=1)
        own[k] = terms[0] + _bias(convs[k])
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


def _slabs(x: Tensor, terms: int) -> Iterator[tuple[int, int]]:
    """Cut the depth into even parts of which so many terms fit."""
    depth = x.shape[2]
    most = max(1, SHARED_BYTES // (terms * x[:, :, 0].numel() * x.element_size()))
    count = -(-depth // most)
    yield from pairwise(round(depth * i / count) for i in range(count + 1))


def _first(attention: ModalityAttention, m: int) -> nn.Conv3d:
    return _convolution(attention[m], "0")


def _convolution(module: nn.Module, name: str) -> nn.Conv3d:
    found = module.get_submodule(name)
    assert isinstance(found, nn.Conv3d)
    return found


def _part(x: Tensor, conv: nn.Conv3d, channels: slice) -> Tensor:
    """Apply a 3³ convolution to some of its input channels alone, without its bias."""
    return F.conv3d(x, conv.weight[:, channels], padding=1)


def _bias(conv: nn.Conv3d) -> Tensor:
    assert conv.bias is not None
    return conv.bias.view(-1, 1, 1, 1)
