"""Several networks segment a case together: the mean of what each says of it by itself."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bts_lightning.inference.importance import Importance
from bts_lightning.inference.protocol import Protocol
from bts_lightning.inference.sliding import each_average, label_map
from bts_lightning.inference.windows import Size
from bts_lightning.losses import SegmentationLoss
from bts_lightning.losses.segmentation import RegionLoss
from bts_lightning.modalities import Subset
from bts_lightning.networks.backbone import Backbone

Box = Sequence[tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Member:
    """A network that is already on the device, and how it segments: window, temperature and so on.

    Attributes:
        loss: turns its logits into probabilities.
    """

    net: Backbone
    loss: SegmentationLoss
    protocol: Protocol


@dataclass(frozen=True, eq=False)
class View:
    """A case as one network was taught to see it.

    Attributes:
        image: 4×D×H×W; absent channels may hold anything.
        box: where it lies on the grid of the files, first and one past the last along each axis.
    """

    image: NDArray[Any]
    box: Box

    @property
    def origin(self) -> Size:
        """Give the first voxel of the box."""
        (d, _), (h, _), (w, _) = self.box
        return d, h, w


def each_of_all(
    members: Sequence[Member],
    views: Sequence[View],
    available: Sequence[bool],
    subsets: Sequence[Subset],
    device: torch.device | str = "cpu",
    importance: Importance | None = None,
) -> Iterator[tuple[NDArray[np.uint8], Tensor]]:
    """Yield label map and mean probabilities of each subset, in terms of `shared_loss`.

    Args:
        members: what is done to the mean is what the protocol of the first says.
        views: of the one case, one for each member; the result lies in the box of the first.
        available: which channels hold an image.
        subsets: some that it can show.
        device: where the networks are.
        importance: hears how the first weighs modalities.
    """
    loss = shared_loss([member.loss for member in members])
    box = views[0].box
    (totals,) = add_up(members, views, box, available, subsets, [loss], device, importance)
    for total in totals:
        with torch.inference_mode():
            total /= len(members)
        yield label_map(loss, total, members[0].protocol), total


@torch.inference_mode()
def add_up(
    members: Sequence[Member],
    views: Sequence[View],
    box: Box,
    available: Sequence[bool],
    subsets: Sequence[Subset],
    losses: Sequence[SegmentationLoss],
    device: torch.device | str = "cpu",
    importance: Importance | None = None,
) -> list[list[Tensor]]:
    """Add up the probabilities of all members, as each loss reads them, for each subset.

    They are 1×C×D×H×W and lie in the box.
    """
    totals: list[list[Tensor]] = [[] for _ in losses]
    for member, view in zip(members, views, strict=True):
        net, own, protocol = member.net, member.loss, member.protocol
        heard = importance if member is members[0] else None
        each = each_average(
            net, own, view.image, available, protocol, subsets, device, None, heard, view.origin
        )
        for s, averaged in enumerate(each):
            for loss, total in zip(losses, totals, strict=True):
                said = averaged if reads_alike(own, loss) else own.of_regions(averaged)
                said = _moved(said, view.box, box)
                if s == len(total):
                    # What is added to must be nobody else's.
                    total.append(said if len(losses) == 1 else said.clone())
                else:
                    total[s] += said.to(total[s].device)
    return totals


def shared_loss(losses: Sequence[SegmentationLoss]) -> SegmentationLoss:
    """Choose what reads the mean: their own loss, or that of regions where they are of two kinds.

    Every loss knows the probabilities of the regions.
    """
    first = losses[0]
    alike = all(reads_alike(first, loss) for loss in losses)
    return first if alike else RegionLoss(scheme=first.scheme_name)


def reads_alike(one: SegmentationLoss, other: SegmentationLoss) -> bool:
    """Say whether probabilities of the one mean the same to the other."""
    ways = ("probabilities", "labels", "of_regions")
    return one.channels == other.channels and all(
        getattr(type(one), way) is getattr(type(other), way) for way in ways
    )


def _moved(said: Tensor, box: Sequence[tuple[int, int]], into: Sequence[tuple[int, int]]) -> Tensor:
    """Show probabilities of one box in another one; where it said nothing they are zero."""
    if tuple(box) == tuple(into):
        return said
    both = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(box, into, strict=True)]
    here, there = (
        (
            slice(None),
            slice(None),
            *(slice(a - low, b - low) for (a, b), (low, _) in zip(both, place, strict=True)),
        )
        for place in (box, into)
    )
    moved = said.new_zeros((*said.shape[:2], *(high - low for low, high in into)))
    moved[there] = said[here]
    return moved
