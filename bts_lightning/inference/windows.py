"""Where windows lie, what they weigh, and what they show."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bts_lightning.errors import ConfigError
from bts_lightning.inference.protocol import Protocol, Spacing, Weighting
from bts_lightning.networks.backbone import Backbone

Size = tuple[int, int, int]
View = tuple[slice, ...]

# Standard deviation of the window's Gaussian over its edge, as nnU-Net and MONAI have it.
SIGMA = 1 / 8
# Where an image begins in the grid of its files, unless that is known.
NOWHERE: Size = (0, 0, 0)


@dataclass(frozen=True)
class Windows:
    """A case laid out for a sliding window.

    Attributes:
        volume: 4×D×H×W as stored, padded with background to one window at least.
        inside: the place of the unpadded grid.
        views: the places of the windows.
        place: windows × 3 × 2, where they lie in the grid of the files; see `Features.place`.
        brain: windows × 4, where each modality shows anything but background.
        size: edges of a window.
    """

    volume: Tensor
    inside: View
    views: list[View]
    place: Tensor
    brain: NDArray[np.bool_]
    size: Size


def lay_out(
    image: NDArray[Any],
    available: Sequence[bool],
    protocol: Protocol,
    net: Backbone,
    origin: Size = NOWHERE,
) -> Windows:
    """Read a case once and decide its windows; `origin` is as in `sliding.segment`."""
    if image.ndim != 4 or len(image) != len(available) or 0 in image.shape:
        raise ValueError(f"image has shape {image.shape}; expected {len(available)}×D×H×W")
    grid: Size = image.shape[1:]
    size = window_size(grid, protocol, net)
    padded = [max(n, w) for n, w in zip(grid, size, strict=True)]
    inside = tuple(slice((p - n) // 2, (p - n) // 2 + n) for p, n in zip(padded, grid, strict=True))
    volume = np.zeros((len(image), *padded), image.dtype)
    volume[(slice(None), *inside)] = image
    starts = product(
        *(
            axis_starts(p, w, protocol.overlap, protocol.windows)
            for p, w in zip(padded, size, strict=True)
        )
    )
    views = [tuple(slice(a, a + w) for a, w in zip(at, size, strict=True)) for at in starts]
    brain = np.ones((len(views), len(image)), np.bool_)
    if protocol.skip_empty:
        # Of each modality by itself: what a subset is shown must not depend on the others.
        for i, view in enumerate(views):
            brain[i] = [
                here and bool(channel[view].any())
                for channel, here in zip(volume, available, strict=True)
            ]
    # As far as a padded volume goes beyond the image, so do its windows.
    begin = NOWHERE if net.misplaces else [o - i.start for o, i in zip(origin, inside, strict=True)]
    place = torch.tensor(
        [[(b + v.start, 1) for b, v in zip(begin, view, strict=True)] for view in views]
    )
    net.check_frame([o + n for o, n in zip(origin, grid, strict=True)])
    return Windows(torch.from_numpy(volume), inside, views, place, brain, size)


def mirrored(place: Tensor, size: Size, axes: Sequence[int]) -> Tensor:
    """Give the places of windows whose images are mirrored along some of the axes -3, -2, -1."""
    place = place.clone()
    for axis in axes:
        first, step = place[:, axis].unbind(dim=-1)
        place[:, axis] = torch.stack([first + step * (size[axis] - 1), -step], dim=-1)
    return place


def window_size(grid: Size, protocol: Protocol, net: Backbone) -> Size:
    """Give the protocol's window, shrunk to the volume if that is wanted; refuse a bad one."""
    if protocol.shrink_window:
        covering = [-(-n // d) * d for n, d in zip(grid, net.divisors, strict=True)]
        z, y, x = (min(w, c) for w, c in zip(protocol.size, covering, strict=True))
        try:
            net.check_size((z, y, x))
        except ValueError:
            # A network with one size only: the check below says so if even the protocol's is bad.
            pass
        else:
            return z, y, x
    try:
        net.check_size(protocol.size)
    except ValueError as error:
        raise ConfigError(f"window of the evaluation: {error}") from error
    return protocol.size


def axis_starts(length: int, window: int, overlap: float, spacing: Spacing = "even") -> list[int]:
    """Place windows, so that neighbours overlap by this share or more."""
    step = max(1, int(window * (1 - overlap)))
    last = length - window
    if spacing == "stepped":
        return [*range(0, last, step), last]
    count = -(-last // step) + 1
    return [round(last * i / max(1, count - 1)) for i in range(count)]


@lru_cache(maxsize=8)
def importance(size: Size, weighting: Weighting) -> Tensor:
    """Give the weight of each voxel of a window; never write to it, it is shared."""
    weights = torch.ones(size)
    if weighting == "gaussian":
        for axis, edge in enumerate(size):
            offset = torch.arange(edge, dtype=torch.float64) - (edge - 1) / 2
            bell = torch.exp(-0.5 * (offset / (SIGMA * edge)) ** 2).float()
            weights *= bell.view([-1 if a == axis else 1 for a in range(3)])
    return weights
