"""Distances from the truth's surface to those of all predictions at once."""

from typing import Any

import numpy as np

from bts_lightning.compiled import compiled
from bts_lightning.metrics.surface import Floats, Ints, Words, lowest

# Voxels along a block of the far search; a row of a block is one cache line.
EDGE = 8
_NONE = np.uint64(0)


@compiled
def walk(
    surface: Words,
    blocks: Words,
    points: Ints,
    wanted: Words,
    steps: Ints,
    lengths: Floats,
    best: Floats,
) -> Words:
    """Look outward from each point until every bit that it wants is met.

    Args:
        surface: padded, so that no step leads outside.
        blocks: of the surface, each united with its 26 neighbours.
        points: flat positions.
        wanted: per point.
        steps: flat, by length.
        lengths: of the steps, squared.
        best: bits × points, filled where a bit is met.

    Returns:
        The bits that each point has not met.
    """
    _, height, width = surface.shape
    flat = surface.reshape(-1)
    left = np.empty_like(wanted)
    for i in range(points.size):
        point = points[i]
        # What no block around has is farther than a block's edge: not worth the walk.
        z, y, x = point // (height * width), point // width % height, point % width
        near = blocks[z // EDGE, y // EDGE, x // EDGE]
        left[i] = wanted[i] & ~near
        pending = wanted[i] & near
        for k in range(steps.size):
            if pending == _NONE:
                break
            met = pending & flat[point + steps[k]]
            pending ^= met
            while met != _NONE:
                bit, place = lowest(met)
                best[place, i] = lengths[k]
                met ^= bit
        left[i] |= pending
    return left


@compiled
def blocks_of(surface: Words) -> Words:
    """Unite the words of each block of 8×8×8 voxels."""
    depth, height, width = surface.shape
    blocks = np.zeros(
        ((depth + EDGE - 1) // EDGE, (height + EDGE - 1) // EDGE, (width + EDGE - 1) // EDGE),
        np.uint64,
    )
    for z in range(depth):
        for y in range(height):
            row = blocks[z // EDGE, y // EDGE]
            for x in range(width):
                row[x // EDGE] |= surface[z, y, x]
    return blocks


@compiled
def with_neighbours(blocks: Words) -> Words:
    """Unite each block with the 26 around it."""
    united = np.zeros_like(blocks)
    depth, height, width = blocks.shape
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                for c in range(max(0, z - 1), min(depth, z + 2)):
                    for b in range(max(0, y - 1), min(height, y + 2)):
                        for a in range(max(0, x - 1), min(width, x + 2)):
                            united[z, y, x] |= blocks[c, b, a]
    return united


@compiled
def search(
    surface: Words,
    blocks: Words,
    points: Ints,
    wanted: Words,
    spacing: tuple[float, float, float],
    best: Floats,
) -> None:
    """Meet what the walk did not reach: fill in `best` (bits × points) what is wanted.

    Blocks are visited in growing rings around the point's own; a bit is done when no block of the
    next ring can hold anything nearer. The voxels nearest to the last point, which is often a
    neighbour, bound the search from the start. Every wanted bit must be set somewhere.
    """
    _, height, width = surface.shape
    finest = min(spacing[0], spacing[1], spacing[2])
    nearest = np.zeros((64, 3), np.int64)
    mine = np.empty(64)
    known = _NONE
    for i in range(points.size):
        z = points[i] // (height * width)
        y = points[i] // width % height
        x = points[i] % width
        here = (z // EDGE, y // EDGE, x // EDGE)
        pending = wanted[i]
        mine[:] = np.inf
        bits = pending & known
        while bits != _NONE:
            bit, place = lowest(bits)
            mine[place] = _squared((z, y, x), nearest[place], spacing)
            bits ^= bit
        known |= pending
        ring = 0
        while pending != _NONE:
            reach = _farthest(pending, mine)
            for bz in range(max(0, here[0] - ring), min(blocks.shape[0], here[0] + ring + 1)):
                for by in range(max(0, here[1] - ring), min(blocks.shape[1], here[1] + ring + 1)):
                    on_shell = abs(bz - here[0]) == ring or abs(by - here[1]) == ring
                    # Inside the shell only the two ends of the row belong to this ring.
                    stride = 1 if on_shell else max(1, 2 * ring)
                    for bx in range(here[2] - ring, here[2] + ring + 1, stride):
                        if bx < 0 or bx >= blocks.shape[2]:
                            continue
                        seen = blocks[bz, by, bx] & pending
                        block = (bz, by, bx)
                        if seen != _NONE and _bound((z, y, x), block, spacing) < reach:
                            _scan(surface, seen, (z, y, x), block, spacing, mine, nearest)
            # The next ring starts at least this far away.
            bound = (ring * EDGE + 1) * finest
            pending = _farther(pending, bound * bound, mine)
            ring += 1
        bits = wanted[i]
        while bits != _NONE:
            bit, place = lowest(bits)
            best[place, i] = mine[place]
            bits ^= bit


@compiled
def _scan(
    surface: Words,
    seen: np.uint64,
    point: tuple[int, int, int],
    block: tuple[int, int, int],
    spacing: tuple[float, float, float],
    best: Floats,
    nearest: Ints,
) -> None:
    """Lower `best`, and keep which voxel did, by the voxels of one block."""
    seen = _farther(seen, _bound(point, block, spacing), best)
    if seen == _NONE:
        return
    reach = _farthest(seen, best)
    for z in range(block[0] * EDGE, min((block[0] + 1) * EDGE, surface.shape[0])):
        for y in range(block[1] * EDGE, min((block[1] + 1) * EDGE, surface.shape[1])):
            if _squared(point, (z, y, point[2]), spacing) >= reach:
                continue
            for x in range(block[2] * EDGE, min((block[2] + 1) * EDGE, surface.shape[2])):
                bits = surface[z, y, x] & seen
                if bits != _NONE:
                    square = _squared(point, (z, y, x), spacing)
                    while bits != _NONE:
                        bit, place = lowest(bits)
                        if square < best[place]:
                            best[place] = square
                            nearest[place, 0], nearest[place, 1], nearest[place, 2] = z, y, x
                        bits ^= bit


@compiled
def _squared(a: Any, b: Any, spacing: Any) -> Any:  # of tuples or rows of an array
    """Sum in the order of SciPy's distance transform, so that medpy's last digit is met."""
    z, y, x = (a[0] - b[0]) * spacing[0], (a[1] - b[1]) * spacing[1], (a[2] - b[2]) * spacing[2]
    return z * z + y * y + x * x


@compiled
def _bound(
    point: tuple[int, int, int],
    block: tuple[int, int, int],
    spacing: tuple[float, float, float],
) -> float:
    """Give the squared distance to the nearest voxel that a block could hold."""
    bound = 0.0
    for axis in range(3):
        start = block[axis] * EDGE
        gap = max(start - point[axis], point[axis] - (start + EDGE - 1), 0) * spacing[axis]
        bound += gap * gap
    return bound


@compiled
def _farthest(bits: np.uint64, best: Floats) -> float:
    farthest = 0.0
    while bits != _NONE:
        bit, place = lowest(bits)
        farthest = max(farthest, best[place])
        bits ^= bit
    return farthest


@compiled
def _farther(bits: np.uint64, square: float, best: Floats) -> np.uint64:
    """Keep the bits whose best so far is not nearer than this."""
    kept = _NONE
    while bits != _NONE:
        bit, place = lowest(bits)
        if best[place] > square:
            kept |= bit
        bits ^= bit
    return kept
