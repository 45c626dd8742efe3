"""One pass from a memory map to a patch: crop and mirror, without holding Python's lock."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bts_lightning.compiled import compiled

Array = NDArray[Any]
Three = tuple[int, int, int]


def copy_box(patch: Array, volume: Array, corner: Three, flips: tuple[bool, bool, bool]) -> None:
    """Fill C×D×H×W `patch` with the box of `volume` at `corner`, mirrored along the flipped axes.

    A float32 patch takes the numbers of a float16 volume; otherwise both are of one type. Where the
    box reaches beyond the volume, the patch keeps what it has. NumPy does the same with strides,
    but moves a mirrored row one element at a time: 5.2 against 1.6 ms for 4×128³.
    """
    widens = (patch.dtype == np.float32 and volume.dtype == np.float16) or None
    if patch.dtype != volume.dtype and not widens:
        raise TypeError(f"patch is {patch.dtype}, volume is {volume.dtype}")
    if not patch.flags.c_contiguous or not volume.flags.c_contiguous:
        raise ValueError("patch and volume must lie in memory without gaps")
    # Bits are moved, not numbers, and the compiler knows no float16.
    bits = np.dtype(f"u{volume.itemsize}")
    target = patch.reshape(-1)
    _copy(
        target if widens else target.view(bits),
        volume.reshape(-1).view(bits),
        patch.shape,
        volume.shape[1:],
        corner,
        flips,
        widens,
    )


@compiled
def widened(bits: int) -> Any:
    """Give the number, finite, that stands in the 16 bits of a float16."""
    moved = np.int32(np.int32(np.int16(bits)) << np.int32(13))
    # Sign, exponent and mantissa in their places; then the other offset of the exponent.
    return np.int32(moved & np.int32(-0x70002000)).view(np.float32) * np.float32(2.0**112)


@compiled
def _copy(
    target: Array,
    source: Array,
    shape: tuple[int, int, int, int],
    size: Three,
    corner: Three,
    flips: tuple[bool, bool, bool],
    widens: Literal[True] | None,
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
                # Known when this is compiled, as everything that compares with None.
                if widens is None:
                    if flips[2]:
                        for w in range(count):
                            new[w] = old[count - one - w]
                    else:
                        for w in range(count):
                            new[w] = old[w]
                elif flips[2]:
                    for w in range(count):
                        new[w] = widened(old[count - one - w])
                else:
                    for w in range(count):
                        new[w] = widened(old[w])
