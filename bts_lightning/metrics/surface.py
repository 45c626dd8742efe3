"""Compiled sweeps over all masks of a case: one bit of a word per subset and region."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

Words = NDArray[np.uint64]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Three truth bits sit above the 3·S predicted ones: 20 subsets and the truth fill 63 of 64 bits.
MOST_SUBSETS = 20
# Voxels along a block of the far search; a row of a block is one cache line.
EDGE = 8

# De Bruijn sequence B(2, 6): times a power of two, its top six bits tell which power, so a small
# table gives the place of the lowest set bit (Leiserson, Prokop, Randall 1998).
_SEQUENCE = 0x03F79D71B4CB0A89
_POSITION = np.zeros(64, np.int64)
for _bit in range(64):
    _POSITION[((_SEQUENCE << _bit) & 0xFFFFFFFFFFFFFFFF) >> 58] = _bit
_MULTIPLIER, _TOP, _ONE, _NONE = np.uint64(_SEQUENCE), np.uint64(58), np.uint64(1), np.uint64(0)


@njit(cache=True, nogil=True)
def occupied(
    predicted: NDArray[np.uint8], truth: NDArray[np.uint8], first: int, last: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_], int]:
    """Tell which planes, rows and columns hold anything, and the union of all labels' bits."""
    subsets, _, height, width = predicted.shape
    planes = np.zeros(last - first, np.bool_)
    rows = np.zeros(height, np.bool_)
    columns = np.zeros(width, np.bool_)
    bits = np.uint8(0)
    plane = np.empty(height * width, np.uint8)
    for z in range(first, last):
        plane[:] = truth[z].ravel()
        for s in range(subsets):
            layer = predicted[s, z].ravel()
            for i in range(plane.size):
                plane[i] |= layer[i]
        together = np.uint8(0)
        for i in range(plane.size):
            together |= plane[i]
        if together:
            bits |= together
            planes[z - first] = True
            for y in range(height):
                for x in range(width):
                    if plane[y * width + x]:
                        rows[y] = True
                        columns[x] = True
    return planes, rows, columns, int(bits)


@njit(cache=True, nogil=True)
def pack(
    predicted: NDArray[np.uint8],
    truth: NDArray[np.uint8],
    regions: NDArray[np.bool_],
    corner: tuple[int, int, int],
    halo: tuple[int, int, int],
    first: int,
    last: int,
    words: Words,
) -> Ints:
    """Set each voxel's region bits in `words` and count its pairs of labels, S×prediction×truth.

    Pairs of background with background are not counted. `words` covers the box of the grid that
    starts at `corner`, with a margin of `halo` around; only its planes from `first` to `last` are
    filled, so that threads can share the work.
    """
    subsets = predicted.shape[0]
    height, width = words.shape[1] - 2 * halo[1], words.shape[2] - 2 * halo[2]
    count = regions.shape[0]
    table = np.zeros((subsets + 1, 4), np.uint64)  # the last row is the truth's
    for s in range(subsets + 1):
        for label in range(4):
            for r in range(count):
                if regions[r, label]:
                    bit = r * subsets + s if s < subsets else count * subsets + r
                    table[s, label] |= _ONE << np.uint64(bit)
    pairs = np.zeros((subsets, 4, 4), np.int64)
    for z in range(first, last):
        for y in range(height):
            row = words[z + halo[0], y + halo[1], halo[2] : halo[2] + width]
            true_row = truth[z + corner[0], y + corner[1], corner[2] : corner[2] + width]
            for x in range(width):
                row[x] = table[subsets, true_row[x]]
            for s in range(subsets):
                line = predicted[s, z + corner[0], y + corner[1], corner[2] : corner[2] + width]
                for x in range(width):
                    if line[x] | true_row[x]:
                        pairs[s, line[x], true_row[x]] += 1
                        row[x] |= table[s, line[x]]
    return pairs


@njit(cache=True, nogil=True)
def peel(words: Words, halo: tuple[int, int, int], first: int, last: int, surface: Words) -> None:
    """Keep of each mask the voxels with a face neighbour outside; beyond the grid is outside."""
    _, height, width = words.shape
    for z in range(first + halo[0], last + halo[0]):
        for y in range(halo[1], height - halo[1]):
            here, up, down = words[z, y], words[z - 1, y], words[z + 1, y]
            above, below = words[z, y - 1], words[z, y + 1]
            out = surface[z, y]
            for x in range(halo[2], width - halo[2]):
                inner = up[x] & down[x] & above[x] & below[x] & here[x - 1] & here[x + 1]
                out[x] = here[x] & ~inner


@njit(cache=True, nogil=True)
def walk(
    surface: Words,
    points: Ints,
    offsets: Ints,
    shells: Ints,
    region_masks: Words,
    truth_bits: Words,
    live: np.uint64,
    allowed: np.uint64,
    histogram: Ints,
) -> tuple[Ints, Words]:
    """Look outward from each point until every mask that asks has met the other surface.

    Args:
        surface: flat and padded, so that no offset leads outside.
        points: flat positions of surface voxels.
        offsets: flat steps, by distance.
        shells: rank of the distance of each step.
        region_masks: per region the bits of all predictions.
        truth_bits: per region the bit of the truth.
        live: the prediction bits that are to be measured.
        allowed: the bits that may be looked for.
        histogram: 2 × bits × shells, added to: towards the truth, towards the predictions.

    Returns:
        The points that are not done, and the bits that they still look for.
    """
    left = np.empty(points.size, np.int64)
    wanted = np.empty(points.size, np.uint64)
    count = 0
    predictions = _NONE
    for r in range(region_masks.size):
        predictions |= region_masks[r]
    for i in range(points.size):
        point = points[i]
        here = surface[point]
        pending = _NONE
        for r in range(region_masks.size):
            if here & region_masks[r] & live:
                pending |= truth_bits[r]
            if here & truth_bits[r]:
                pending |= region_masks[r] & live
        pending &= allowed
        if pending == _NONE:
            continue
        for k in range(offsets.size):
            met = pending & surface[point + offsets[k]]
            if met == _NONE:
                continue
            shell = shells[k]
            for r in range(region_masks.size):
                if met & truth_bits[r]:
                    _tally(here & region_masks[r] & live, shell, histogram[0])
            _tally(met & predictions, shell, histogram[1])
            pending ^= met
            if pending == _NONE:
                break
        if pending != _NONE:
            left[count] = point
            wanted[count] = pending
            count += 1
    return left[:count].copy(), wanted[:count].copy()


@njit(cache=True, nogil=True)
def _tally(bits: np.uint64, shell: int, histogram: Ints) -> None:
    while bits != _NONE:
        lowest = bits & (~bits + _ONE)
        histogram[_POSITION[(lowest * _MULTIPLIER) >> _TOP], shell] += 1
        bits ^= lowest


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def search(
    surface: Words, blocks: Words, points: Ints, wanted: Words, spacing: tuple[float, float, float]
) -> Floats:
    """Find the squared distance from each point to each surface that it wants (points × 64 bits).

    Blocks are visited in growing rings around the point's own; a bit is done when no block of the
    next ring can hold anything nearer. Each wanted bit must be set somewhere.
    """
    _, height, width = surface.shape
    best = np.full((points.size, 64), np.inf)
    finest = min(spacing[0], spacing[1], spacing[2])
    for i in range(points.size):
        z = points[i] // (height * width)
        y = points[i] // width % height
        x = points[i] % width
        here = (z // EDGE, y // EDGE, x // EDGE)
        pending = wanted[i]
        ring = 0
        while pending != _NONE:
            for bz in range(max(0, here[0] - ring), min(blocks.shape[0], here[0] + ring + 1)):
                for by in range(max(0, here[1] - ring), min(blocks.shape[1], here[1] + ring + 1)):
                    on_shell = abs(bz - here[0]) == ring or abs(by - here[1]) == ring
                    # Inside the shell only the two ends of the row belong to this ring.
                    stride = 1 if on_shell else max(1, 2 * ring)
                    for bx in range(here[2] - ring, here[2] + ring + 1, stride):
                        if bx < 0 or bx >= blocks.shape[2]:
                            continue
                        seen = blocks[bz, by, bx] & pending
                        if seen != _NONE:
                            _scan(surface, seen, (z, y, x), (bz, by, bx), spacing, best[i])
            # The next ring starts at least this far away.
            bound = (ring * EDGE + 1) * finest
            pending = _farther(pending, bound * bound, best[i])
            ring += 1
    return best


@njit(cache=True, nogil=True)
def _scan(
    surface: Words,
    seen: np.uint64,
    point: tuple[int, int, int],
    block: tuple[int, int, int],
    spacing: tuple[float, float, float],
    best: Floats,
) -> None:
    """Lower `best` by the voxels of one block."""
    nearest = 0.0
    for axis in range(3):
        start = block[axis] * EDGE
        gap = max(start - point[axis], point[axis] - (start + EDGE - 1), 0) * spacing[axis]
        nearest += gap * gap
    seen = _farther(seen, nearest, best)
    if seen == _NONE:
        return
    for z in range(block[0] * EDGE, min((block[0] + 1) * EDGE, surface.shape[0])):
        for y in range(block[1] * EDGE, min((block[1] + 1) * EDGE, surface.shape[1])):
            for x in range(block[2] * EDGE, min((block[2] + 1) * EDGE, surface.shape[2])):
                bits = surface[z, y, x] & seen
                if bits != _NONE:
                    a = (z - point[0]) * spacing[0]
                    b = (y - point[1]) * spacing[1]
                    c = (x - point[2]) * spacing[2]
                    square = a * a + b * b + c * c
                    while bits != _NONE:
                        lowest = bits & (~bits + _ONE)
                        place = _POSITION[(lowest * _MULTIPLIER) >> _TOP]
                        best[place] = min(best[place], square)
                        bits ^= lowest


@njit(cache=True, nogil=True)
def _farther(bits: np.uint64, square: float, best: Floats) -> np.uint64:
    """Keep the bits whose best so far is not nearer than this."""
    kept = _NONE
    while bits != _NONE:
        lowest = bits & (~bits + _ONE)
        if best[_POSITION[(lowest * _MULTIPLIER) >> _TOP]] > square:
            kept |= lowest
        bits ^= lowest
    return kept
