"""The two surfaces of the challenges, and the distances between them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

from bts_lightning.compiled import compiled
from bts_lightning.metrics.distances import Spacing, outward_steps, surface_distances
from bts_lightning.metrics.lesions.components import Frame, Places, Tags, flat
from bts_lightning.metrics.policies import Floats

_CUBE = list(product((0, 1), repeat=3))
_FACES = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]


@dataclass(frozen=True, eq=False)
class Surface:
    """Points of a grid, sorted, with the number of the component to which each belongs.

    Attributes:
        areas: mm² that each point stands for.
    """

    places: Places
    tags: Tags
    areas: Floats

    def of(self, tags: Sequence[int]) -> "Surface":
        """Keep the points of some components."""
        kept = np.isin(self.tags, tags)
        return Surface(self.places[kept], self.tags[kept], self.areas[kept])


def corner_surface(places: Places, numbers: Tags, frame: Frame) -> Surface:
    """Take the corners of voxels that lie in the mask and outside of it, weighed by area.

    Neighbours through a corner are one component, so each corner belongs to exactly one.
    """
    corners, kinds, tags = _corners(places, numbers, flat(_CUBE, frame.shape), frame.size)
    order = np.argsort(corners)
    return Surface(corners[order], tags[order], _areas(frame.spacing)[kinds[order]])


@compiled
def _corners(
    places: Places, numbers: Tags, corners: Places, size: int
) -> tuple[Places, NDArray[np.uint8], Tags]:
    """Find corners of which some of the eight voxels are in the mask: place, which ones, number.

    A corner has the place of the last voxel around it.
    """
    seen = np.zeros(size, np.uint8)
    for place in places:
        for k in range(8):
            # The voxel is the opposite one of the eight around the corner.
            seen[place + corners[k]] |= np.uint8(1 << (7 - k))
    points = np.empty(8 * places.size, np.int64)
    kinds = np.empty(8 * places.size, np.uint8)
    tags = np.empty(8 * places.size, np.int32)
    count = 0
    for i in range(places.size):
        for k in range(8):
            corner = places[i] + corners[k]
            if seen[corner] and seen[corner] != 255:
                points[count], kinds[count], tags[count] = corner, seen[corner], numbers[i]
                count += 1
                seen[corner] = 0
    return points[:count].copy(), kinds[:count].copy(), tags[:count].copy()


def voxel_surface(places: Places, numbers: Tags, frame: Frame) -> Surface:
    """Take the voxels with a face neighbour outside the mask; each counts as one."""
    is_inside = np.zeros(frame.size, np.bool_)
    is_inside[places] = True
    is_border = np.zeros(places.size, np.bool_)
    for step in flat(_FACES, frame.shape):
        is_border |= ~is_inside[places + step]
    return Surface(places[is_border], numbers[is_border], np.ones(int(is_border.sum())))


def distances(
    truth: Surface, predicted: Sequence[Surface], frame: Frame, threads: int
) -> list[tuple[Floats, Floats]]:
    """Give the mm from each point of some surfaces to the truth's, and back from all of its own.

    None of the surfaces may be empty.
    """
    if not predicted:
        return []
    halo = np.array(outward_steps(frame.spacing).halo)
    found = [np.stack(np.unravel_index(s.places, frame.shape)) for s in (*predicted, truth)]
    first = np.min([points.min(axis=1) for points in found], axis=0)
    last = np.max([points.max(axis=1) for points in found], axis=0)
    words = np.zeros(last - first + 1 + 2 * halo, np.uint64)
    for bit, points in enumerate(found):
        words[tuple(points - (first - halo)[:, None])] |= np.uint64(1 << bit)
    squares = surface_distances(
        words,
        np.flatnonzero(words),
        np.ones((len(predicted), 1), np.bool_),
        frame.spacing,
        threads,
    )
    return [(np.sqrt(there), np.sqrt(back)) for there, back in squares.values()]


def weighted95(distances: Floats, areas: Floats) -> float:
    """Take the distance below which 95 % of the area lies."""
    order = np.argsort(distances)
    share = np.cumsum(areas[order]) / np.sum(areas[order])
    return float(distances[order][min(int(np.searchsorted(share, 0.95)), len(order) - 1)])


@lru_cache(maxsize=8)
def _areas(spacing: Spacing) -> Floats:
    """Give the area of a corner by the bits of its eight voxels, as marching cubes cut them."""
    p = np.array([spacing[1] * spacing[2], spacing[0] * spacing[2], spacing[0] * spacing[1]])
    whole = math.sqrt(float(p @ p))
    flat = [math.sqrt(float(p @ p - p[axis] ** 2)) for axis in range(3)]
    table = np.zeros(256)
    for code in range(1, 255):
        corners = [corner for bit, corner in enumerate(_CUBE) if code >> bit & 1]
        if len(corners) > 4:
            corners = [corner for corner in _CUBE if corner not in corners]
        table[code] = _area(corners, [float(v) for v in p], whole, flat)
    return table


def _area(corners: list[tuple[int, ...]], p: list[float], whole: float, flat: list[float]) -> float:
    """Tell the area by the edges of the cube between the corners: `axes` has one entry an edge."""
    edges = []
    for a, b in combinations(corners, 2):
        along = [axis for axis in range(3) if a[axis] != b[axis]]
        if len(along) == 1:
            edges.append((a, b, along[0]))
    axes = [axis for *_, axis in edges]
    meet = bool(set(edges[0][:2]) & set(edges[1][:2])) if len(edges) == 2 else False
    # The normal of the face in which an L or a square lies.
    normal = 3 - sum(set(axes)) if len(set(axes)) == 2 else 0
    match len(corners), len(edges):
        case 1, _:
            return whole / 8
        case 2, 1:
            return flat[axes[0]] / 2
        case 2, _:
            return whole / 4
        case 3, 2:
            return p[normal] / 2 + 3 * whole / 8
        case 3, 1:
            return flat[axes[0]] / 2 + whole / 8
        case 3, _:
            return 3 * whole / 8
        case 4, 4:
            return p[normal]
        case 4, 3:
            ends = [c for c in corners if sum(c in edge[:2] for edge in edges) == 1]
            if len(ends) == 3:
                return 3 * whole / 4
            first, last = (next(axis for a, b, axis in edges if end in (a, b)) for end in ends)
            return whole / 2 + flat[first] / 4 + flat[last] / 4
        case 4, 2 if meet:
            return p[normal] / 2 + whole / 2
        case 4, 2:
            return flat[axes[0]]
    return whole / 2
