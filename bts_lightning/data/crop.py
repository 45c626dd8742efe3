"""One pass from a memory map to a patch: crop and mirror, without holding Python's lock."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bts_lightning.compiled import compiled

Array = NDArray[Any]
Three = tuple[int, int, int]


def copy_box(patch: Array, volume: Array, corner: Three, flips: tuple[bool, bool, bool]) -> None:
    """Fill C×D×H×W `patch` with the box of `volume` at `corner`, mirrored along the flipped axes.

    Where the box reaches beyond the volume, the patch keeps what it has. NumPy does the same with
    strides, but moves a mirrored row one element at a time: 5.2 against 1.6 ms for 4×128³.
    """
    if patch.dtype != volume.dtype:
        raise TypeError(f"patch is {patch.dtype}, volume is {volume.dtype}")
    if not patch.flags.c_contiguous or not volume.flags.c_contiguous:
        raise ValueError("patch and volume must lie in memory without gaps")
    # Bits are moved, not numbers, and the compiler knows no float16.
    bits = np.dtype(f"u{patch.itemsize}")
    _copy(
        patch.reshape(-1).view(bits),
        volume.reshape(-1).view(bits),
        patch.shape,
        volume.shape[1:],
        corner,
        flips,
    )


@compiled
def _copy(
    target: Array,
    source: Array,
    shape: tuple[int, int, int, int],
    size: Three,
    corner: Three,
    flips: tuple[bool, bool, bool],
) -> None:
    channels, depth, height, width = shape
    first, last = max(0, -corner[2]), min(width, size[2] - corner[2])
    length = last - first
    # Unsigned, because a signed index may count from the end, and that test would keep the compiler
    # from moving many elements at once.
    count, one = np.uint64(length), np.uint64(1)
    for c in range(channels):
        for d in range(max(0, -corner[0]), min(depth, size[0] - corner[0])):
            from_plane = c * size[0] + corner[0] + d
            to_plane = c * depth + (depth - 1 - d if flips[0] else d)
            for h in range(max(0, -corner[1]), min(height, size[1] - corner[1])):
                from_row = from_plane * size[1] + corner[1] + h
                to_row = to_plane * height + (height - 1 - h if flips[1] else h)
                s = from_row * size[2] + corner[2] + first
                t = to_row * width + (width - last if flips[2] else first)
                # As slices, two rows plainly do not overlap, in whichever order the rows come.
                old, new = source[s : s + length], target[t : t + length]
                if flips[2]:
                    for w in range(count):
                        new[w] = old[count - one - w]
                else:
                    for w in range(count):
                        new[w] = old[w]
