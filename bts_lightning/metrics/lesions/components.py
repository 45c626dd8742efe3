"""Which voxels of a mask belong together: connected, or near enough to be one lesion.

Masks are lists of flat positions in C order, on a box with a margin of one voxel around it: a
tumour is small, its grid is not, and no neighbour has to be asked whether it is there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from bts_lightning.compiled import compiled
from bts_lightning.metrics.distances import Spacing

Places = NDArray[np.int64]
Tags = NDArray[np.int32]
Shape = tuple[int, int, int]

_CUBE = [step for step in product((-1, 0, 1), repeat=3) if any(step)]
# Those that come before a voxel in C order: first the one beside it, then four in the far column,
# which are all that is new once the one beside it has met its own.
_BEFORE = [(0, 0, -1), *((z, y, 1) for z, y in ((-1, -1), (-1, 0), (-1, 1), (0, -1)))]
_BEFORE += [(z, y, x) for z, y in ((-1, -1), (-1, 0), (-1, 1), (0, -1)) for x in (-1, 0)]
# Neighbours that share a face or an edge.
_EIGHTEEN = [step for step in _CUBE if sum(map(abs, step)) <= 2]


@dataclass(frozen=True, eq=False)
class Frame:
    """The box of a case in which all is measured.

    Attributes:
        shape: of the box with its margin.
        corner: of the box, without its margin, in the whole grid.
        whole: shape of the grid.
        spacing: mm.
    """

    shape: Shape
    corner: Shape
    whole: Shape
    spacing: Spacing

    @property
    def size(self) -> int:
        """How many voxels the box has."""
        return math.prod(self.shape)

    def outside(self, places: Places) -> Places:
        """Translate positions to the whole grid."""
        inside = np.stack(np.unravel_index(places, self.shape)) - 1
        return np.ravel_multi_index(tuple(inside + np.array(self.corner)[:, None]), self.whole)


def flat(steps: Sequence[tuple[int, ...]], shape: Shape) -> Places:
    """Give steps of z, y, x as steps in the flat array."""
    return np.array(steps, np.int64) @ np.array([shape[1] * shape[2], shape[2], 1], np.int64)


def components(places: Places, frame: Frame) -> Tags:
    """Number what is connected by face, edge or corner, from 1, by its first voxel."""
    return _connect(places, flat(_BEFORE, frame.shape), frame.size)


@compiled
def _connect(places: Places, before: Places, size: int) -> Tags:
    tags = np.zeros(size, np.int32)
    parent = np.zeros(places.size + 1, np.int32)
    count = 0
    for place in places:
        mine = tags[place + before[0]]
        for k in range(1, 5 if mine else before.size):
            other = tags[place + before[k]]
            if other and other != mine:
                mine = _unite(parent, mine, other) if mine else other
        if not mine:
            count += 1
            mine = np.int32(count)
            parent[mine] = mine
        tags[place] = mine
    final = 0
    for i in range(1, count + 1):
        if parent[i] == i:
            final += 1
            parent[i] = final
        else:
            # A parent is smaller and has its final number already.
            parent[i] = parent[parent[i]]
    numbers = np.empty(places.size, np.int32)
    for i in range(places.size):
        numbers[i] = parent[tags[places[i]]]
    return numbers


@compiled
def _unite(parent: Tags, a: np.int32, b: np.int32) -> np.int32:
    while parent[a] != a:
        a = parent[a]
    while parent[b] != b:
        b = parent[b]
    root = min(a, b)
    parent[a] = root
    parent[b] = root
    return root


def volume(places: Places, numbers: Tags, frame: Frame) -> Tags:
    """Give each voxel of the box its number, 0 elsewhere; flat."""
    tags = np.zeros(frame.size, np.int32)
    tags[places] = numbers
    return tags


def grown(places: Places, steps: int, frame: Frame) -> Places:
    """Dilate a mask by some steps to 18 neighbours, but not into the margin."""
    inside = np.zeros(frame.shape, np.uint8)
    for axis in range(3):
        for side in (0, -1):
            inside[(slice(None),) * axis + (side,)] = 2
    # Of the same memory.
    states = inside.ravel()
    _grow(states, places, flat(_EIGHTEEN, frame.shape), steps)
    return np.flatnonzero(states == 1)


@compiled
def _grow(inside: NDArray[np.uint8], places: Places, around: Places, steps: int) -> None:
    for place in places:
        inside[place] = 1
    front = places
    for _ in range(steps):
        reached = np.empty(front.size * around.size, np.int64)
        count = 0
        for place in front:
            for step in around:
                if not inside[place + step]:
                    inside[place + step] = 1
                    reached[count] = place + step
                    count += 1
        front = reached[:count]


def contacts(places: Places, numbers: Tags, other: Tags, frame: Frame) -> dict[int, set[int]]:
    """Find which components of another tissue share a face or an edge with each of ours."""
    met: dict[int, set[int]] = {}
    for step in flat(_EIGHTEEN, frame.shape):
        theirs = other[places + step]
        pairs = np.stack([numbers, theirs])[:, theirs > 0]
        for mine, partner in np.unique(pairs, axis=1).T.tolist():
            met.setdefault(mine, set()).add(partner)
    return met
