"""Compiled sweeps over all masks of a case: one bit of a word per subset and region."""

import numpy as np
from numpy.typing import NDArray

from bts_lightning.compiled import compiled

Words = NDArray[np.uint64]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# De Bruijn sequence B(2, 6): times a power of two, its top six bits tell which power, so a small
# table gives the place of a single bit (Leiserson, Prokop, Randall 1998).
_SEQUENCE = 0x03F79D71B4CB0A89
_PLACES = np.zeros(64, np.int64)
for _bit in range(64):
    _PLACES[((_SEQUENCE << _bit) & 0xFFFFFFFFFFFFFFFF) >> 58] = _bit
_MULTIPLIER, _TOP, _ONE = np.uint64(_SEQUENCE), np.uint64(58), np.uint64(1)


def most_subsets(regions: int) -> int:
    """Count the subsets whose bits, and those of the truth above them, fit into a word of 64."""
    return 64 // regions - 1


# Compiled code is kept beside each file and renewed when that file changes, not when this one does:
# after a change here delete `__pycache__`.
@compiled
def lowest(bits: np.uint64) -> tuple[np.uint64, int]:
    """Give the lowest bit that is set, and its place."""
    bit = bits & (~bits + _ONE)
    return bit, _PLACES[(bit * _MULTIPLIER) >> _TOP]


@compiled
def occupied(
    predicted: NDArray[np.uint8], truth: NDArray[np.uint8], first: int, last: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_], int]:
    """Tell which planes, rows and columns hold anything, and the largest label."""
    subsets, _, height, width = predicted.shape
    planes = np.zeros(last - first, np.bool_)
    rows = np.zeros(height, np.bool_)
    columns = np.zeros(width, np.bool_)
    largest = np.uint8(0)
    plane = np.empty(height * width, np.uint8)
    for z in range(first, last):
        plane[:] = truth[z].ravel()
        for s in range(subsets):
            layer = predicted[s, z].ravel()
            for i in range(plane.size):
                plane[i] = max(plane[i], layer[i])
        most = np.uint8(0)
        for i in range(plane.size):
            most = max(most, plane[i])
        if most:
            largest = max(largest, most)
            planes[z - first] = True
            for y in range(height):
                for x in range(width):
                    if plane[y * width + x]:
                        rows[y] = True
                        columns[x] = True
    return planes, rows, columns, int(largest)


@compiled
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

    Pairs of background with background are not counted. `words`, all zero, covers the box of the
    grid that starts at `corner`, with a margin of `halo` around; only its planes from `first` to
    `last` are filled, so that threads can share the work.
    """
    subsets = predicted.shape[0]
    height, width = words.shape[1] - 2 * halo[1], words.shape[2] - 2 * halo[2]
    count, classes = regions.shape
    table = np.zeros((subsets + 1, classes), np.uint64)  # the last row is the truth's
    for s in range(subsets + 1):
        for label in range(classes):
            for r in range(count):
                if regions[r, label]:
                    bit = r * subsets + s if s < subsets else count * subsets + r
                    table[s, label] |= _ONE << np.uint64(bit)
    pairs = np.zeros((subsets, classes, classes), np.int64)
    for z in range(first, last):
        for y in range(height):
            row = words[z + halo[0], y + halo[1], halo[2] : halo[2] + width]
            true_row = truth[z + corner[0], y + corner[1], corner[2] : corner[2] + width]
            # Most rows hold nothing, and to see that takes the least.
            true_labels = united(true_row)
            if true_labels:
                for x in range(width):
                    row[x] = table[subsets, true_row[x]]
            for s in range(subsets):
                line = predicted[s, z + corner[0], y + corner[1], corner[2] : corner[2] + width]
                if not true_labels | united(line):
                    continue
                for x in range(width):
                    if line[x] | true_row[x]:
                        pairs[s, line[x], true_row[x]] += 1
                        row[x] |= table[s, line[x]]
    return pairs


@compiled
def united(row: NDArray[np.unsignedinteger]) -> np.unsignedinteger:
    """Give all bits of a row."""
    bits = row.dtype.type(0)
    for x in range(row.size):
        bits |= row[x]
    return bits


@compiled
def peel(words: Words, halo: tuple[int, int, int], first: int, last: int, surface: Words) -> Ints:
    """Keep of each mask the voxels with a face neighbour outside; beyond the grid is outside.

    Returns:
        The flat positions of voxels on any surface, in their order.
    """
    _, height, width = words.shape
    points = np.empty(width, np.int64)
    count = 0
    for z in range(first + halo[0], last + halo[0]):
        for y in range(halo[1], height - halo[1]):
            here, up, down = words[z, y], words[z - 1, y], words[z + 1, y]
            if not united(here):
                continue
            above, below = words[z, y - 1], words[z, y + 1]
            out = surface[z, y]
            for x in range(halo[2], width - halo[2]):
                inner = up[x] & down[x] & above[x] & below[x] & here[x - 1] & here[x + 1]
                out[x] = here[x] & ~inner
            if count + width > points.size:
                longer = np.empty(2 * points.size + width, np.int64)
                longer[:count] = points[:count]
                points = longer
            for x in range(halo[2], width - halo[2]):
                if out[x]:
                    points[count] = (z * height + y) * width + x
                    count += 1
    return points[:count]
