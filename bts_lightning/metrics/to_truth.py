"""Distances from every prediction's surface to the truth's: one map serves them all."""

import numpy as np
from numba import njit

from bts_lightning.metrics.surface import Floats, Ints, Words, lowest

_NONE = np.uint64(0)


@njit(cache=True, nogil=True)
def map_planes(
    surface: Words,
    bit: np.uint64,
    halo: tuple[int, int, int],
    spacing: tuple[float, float, float],
    first: int,
    last: int,
    beside: Floats,
    within: Floats,
) -> None:
    """Measure, in each plane by itself, from every voxel to the nearest one that has the bit.

    Args:
        surface: words with a margin of `halo`.
        bit: a single one.
        halo: the margin.
        spacing: mm.
        first: plane to begin with, so that threads can share the work.
        last: plane to stop before.
        beside: D×H×W without the margin, filled with the squared distance along the row.
        within: the same, filled with the squared distance within the plane.
    """
    _, height, width = within.shape
    rows = np.empty(height, np.int64)
    for z in range(first, last):
        count = 0
        for y in range(height):
            words = surface[z + halo[0], y + halo[1], halo[2] : halo[2] + width]
            nearest = beside[z, y]
            nearest[:] = np.inf
            at = -1
            for x in range(width):
                if words[x] & bit:
                    at = x
                if at >= 0:
                    nearest[x] = ((x - at) * spacing[2]) ** 2
            if at < 0:
                continue
            rows[count] = y
            count += 1
            for x in range(width - 1, -1, -1):
                if words[x] & bit:
                    at = x
                if at >= x:
                    nearest[x] = min(nearest[x], ((at - x) * spacing[2]) ** 2)
        for y in range(height):
            best = within[z, y]
            best[:] = np.inf
            # The plainest way, and the fastest: compilers make it eight voxels a step.
            for i in range(count):
                step = ((rows[i] - y) * spacing[1]) ** 2
                nearest = beside[z, rows[i]]
                for x in range(width):
                    best[x] = min(best[x], step + nearest[x])


@njit(cache=True, nogil=True)
def gather(
    surface: Words,
    points: Ints,
    bits: np.uint64,
    halo: tuple[int, int, int],
    spacing: tuple[float, float, float],
    beside: Floats,
    within: Floats,
) -> tuple[Floats, Ints]:
    """Give the squared distances of the points that have these bits, sorted by bit.

    Returns:
        The distances, and where those of each of the 64 bits begin.
    """
    flat = surface.reshape(-1)
    counts = np.zeros(65, np.int64)
    for i in range(points.size):
        mine = flat[points[i]] & bits
        while mine != _NONE:
            bit, place = lowest(mine)
            counts[place + 1] += 1
            mine ^= bit
    starts = np.cumsum(counts)
    ends = starts.copy()
    squares = np.empty(starts[-1])
    _, height, width = surface.shape
    for i in range(points.size):
        point = points[i]
        mine = flat[point] & bits
        if mine == _NONE:
            continue
        square = _nearest(
            point // (height * width) - halo[0],
            point // width % height - halo[1],
            point % width - halo[2],
            spacing,
            beside,
            within,
        )
        while mine != _NONE:
            bit, place = lowest(mine)
            squares[ends[place]] = square
            ends[place] += 1
            mine ^= bit
    return squares, starts


@njit(cache=True, nogil=True)
def _nearest(
    z: int, y: int, x: int, spacing: tuple[float, float, float], beside: Floats, within: Floats
) -> float:
    """Look through planes outward; add up in the order of SciPy's map, for medpy's last digit."""
    depth, height, _ = within.shape
    best, plane, up = within[z, y, x], z, 0.0
    for k in range(1, depth):
        step = (k * spacing[0]) ** 2
        if step >= best:
            break
        if z >= k and step + within[z - k, y, x] < best:
            best, plane, up = step + within[z - k, y, x], z - k, step
        if z + k < depth and step + within[z + k, y, x] < best:
            best, plane, up = step + within[z + k, y, x], z + k, step
    for k in range(height):
        step = (k * spacing[1]) ** 2
        if y >= k and step + beside[plane, y - k, x] == within[plane, y, x]:
            return up + step + beside[plane, y - k, x]
        if y + k < height and step + beside[plane, y + k, x] == within[plane, y, x]:
            return up + step + beside[plane, y + k, x]
    return np.inf
