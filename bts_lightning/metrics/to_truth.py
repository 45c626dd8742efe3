"""Distances from every prediction's surface to the truth's: one map serves them all."""

import numpy as np
from numpy.typing import NDArray

from bts_lightning.compiled import compiled
from bts_lightning.metrics.surface import Floats, Ints, Words, lowest, united

Flags = NDArray[np.bool_]

# Voxels of a row that are mapped together, or not at all: one step of a processor.
PIECE = 8
_NONE = np.uint64(0)


@compiled
def asked_rows(
    points: Ints, shape: tuple[int, int, int], corner: tuple[int, int, int], size: tuple[int, int]
) -> Flags:
    """Tell which pieces of rows hold a point in any plane: nobody asks for the rest of the map.

    Args:
        points: flat positions in a volume of this shape.
        shape: of the volume.
        corner: where the map begins.
        size: of the map, H×W.
    """
    asked = np.zeros((size[0], (size[1] + PIECE - 1) // PIECE), np.bool_)
    for i in range(points.size):
        y = points[i] // shape[2] % shape[1] - corner[1]
        x = points[i] % shape[2] - corner[2]
        asked[y, x // PIECE] = True
    return asked


@compiled
def map_planes(
    surface: Words,
    bit: np.uint64,
    corner: tuple[int, int, int],
    spacing: tuple[float, float, float],
    first: int,
    last: int,
    asked: Flags,
    beside: Floats,
    filled: Flags,
    within: Floats,
) -> None:
    """Measure, in each plane by itself, from every voxel asked for to the nearest with the bit.

    Args:
        surface: words.
        bit: a single one.
        corner: of the map in the words.
        spacing: mm.
        first: plane of the map to begin with, so that threads can share the work.
        last: plane to stop before.
        asked: pieces of rows that are needed, for all planes.
        beside: D×H×W of the map, filled with the squared distance along rows that have the bit.
        filled: D×H, tells which rows have it.
        within: D×H×W, filled with the squared distance within the plane.
    """
    _, height, width = within.shape
    rows = np.empty(height, np.int64)
    for z in range(first, last):
        count = 0
        for y in range(height):
            words = surface[z + corner[0], y + corner[1], corner[2] : corner[2] + width]
            filled[z, y] = united(words) & bit != _NONE
            if not filled[z, y]:
                continue
            rows[count] = y
            count += 1
            nearest = beside[z, y]
            nearest[:] = np.inf
            at = -1
            for x in range(width):
                if words[x] & bit:
                    at = x
                if at >= 0:
                    nearest[x] = ((x - at) * spacing[2]) ** 2
            for x in range(width - 1, -1, -1):
                if words[x] & bit:
                    at = x
                if at >= x:
                    nearest[x] = min(nearest[x], ((at - x) * spacing[2]) ** 2)
        for y in range(height):
            start, stop = 0, 0
            while stop < width:
                start, stop = _next_run(asked[y], stop, width)
                best = within[z, y, start:stop]
                best[:] = np.inf
                # The plainest way, and the fastest: compilers make it eight voxels a step.
                for i in range(count):
                    step = ((rows[i] - y) * spacing[1]) ** 2
                    nearest = beside[z, rows[i], start:stop]
                    for x in range(stop - start):
                        best[x] = min(best[x], step + nearest[x])


@compiled
def _next_run(asked: Flags, first: int, width: int) -> tuple[int, int]:
    """Find the next voxels of a row, from `first` on, that are asked for; none if it ends there."""
    piece = first // PIECE if first < width else asked.size
    while piece < asked.size and not asked[piece]:
        piece += 1
    begin = piece
    while piece < asked.size and asked[piece]:
        piece += 1
    return min(begin * PIECE, width), min(piece * PIECE, width)


@compiled
def gather(
    surface: Words,
    points: Ints,
    bits: np.uint64,
    corner: tuple[int, int, int],
    spacing: tuple[float, float, float],
    beside: Floats,
    filled: Flags,
    within: Floats,
) -> tuple[Floats, Ints]:
    """Give the squared distances of these bits of the points, sorted by bit.

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
    whole = spacing[0] % 1 == 0 and spacing[1] % 1 == 0 and spacing[2] % 1 == 0
    for i in range(points.size):
        point = points[i]
        mine = flat[point] & bits
        square = _nearest(
            point // (height * width) - corner[0],
            point // width % height - corner[1],
            point % width - corner[2],
            spacing,
            whole,
            beside,
            filled,
            within,
        )
        while mine != _NONE:
            bit, place = lowest(mine)
            squares[ends[place]] = square
            ends[place] += 1
            mine ^= bit
    return squares, starts


@compiled
def _nearest(
    z: int,
    y: int,
    x: int,
    spacing: tuple[float, float, float],
    whole: bool,
    beside: Floats,
    filled: Flags,
    within: Floats,
) -> float:
    """Look through planes outward; add up in the order of SciPy's map, for medpy's last digit."""
    depth, height, _ = within.shape
    best, plane, up = np.inf, 0, 0.0
    # The point may lie before the map's first plane or behind its last.
    for k in range(max(0, -z, z - depth + 1), max(z, depth - 1 - z) + 1):
        step = (k * spacing[0]) ** 2
        if step >= best:
            break
        for there in (z - k, z + k):
            if 0 <= there < depth and step + within[there, y, x] < best:
                best, plane, up = step + within[there, y, x], there, step
    if whole:
        # Sums of whole numbers are the same in any order.
        return best
    for k in range(height):
        step = (k * spacing[1]) ** 2
        for row in (y - k, y + k):
            if row < 0 or row >= height or not filled[plane, row]:
                continue
            if step + beside[plane, row, x] == within[plane, y, x]:
                return up + step + beside[plane, row, x]
    return np.inf
