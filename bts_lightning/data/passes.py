"""The passes of the augmentation over a processor's memory, compiled, without Python's lock.

Background is the number zero. What is not background and comes out as zero is written as `TINY`, so
no mask need be kept beside the image.
"""

from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bts_lightning.compiled import compiled
from bts_lightning.data.crop import Three, widened

Array = NDArray[Any]
# Vanishes beside every number that is not itself as good as zero.
TINY = np.float32(1e-30)
ZERO, ONE, HALF = (np.float32(number) for number in (0, 1, 0.5))
# Rows side by side read the same lines of memory, whichever way they are turned.
TILE = 16
NO_SIGN = np.uint16(0x7FFF)


def turn(
    image: Array,
    label: Array,
    volume: Array,
    truth: Array,
    matrix: Array,
    centre: Array,
) -> None:
    """Fill image and label with a turned view of the float16 volume, about its point `centre`.

    Args:
        matrix: from voxels of the patch to those of the volume.
        centre: in voxels, counted from where the volume begins.
    """
    # To the middle of the first voxel.
    first = centre - 0.5 + matrix @ (0.5 - np.array(label.shape) / 2)
    bits, flat = volume.reshape(-1).view(np.uint16), truth.reshape(-1)
    _turn(image, label, bits, flat, truth.shape, matrix.astype(np.float64), first)


@compiled
def _turn(
    image: Array,
    label: Array,
    bits: Array,
    truth: Array,
    size: Three,
    matrix: Array,
    first: Array,
) -> None:
    channels, depth, height, width = image.shape
    room = size[0] * size[1] * size[2]
    row, plane = np.uint64(size[2]), np.uint64(size[1] * size[2])
    one = np.uint64(1)
    tiles = -(-height // TILE)
    for tile in range(-(-depth // TILE) * tiles):
        for place in range(TILE * TILE):
            d = tile // tiles * TILE + place // TILE
            h = tile % tiles * TILE + place % TILE
            if d >= depth or h >= height:
                continue
            z0 = first[0] + d * matrix[0, 0] + h * matrix[0, 1]
            y0 = first[1] + d * matrix[1, 0] + h * matrix[1, 1]
            x0 = first[2] + d * matrix[2, 0] + h * matrix[2, 1]
            rows, labels = image[:, d, h], label[d, h]
            for w in range(width):
                z, y, x = z0 + w * matrix[0, 2], y0 + w * matrix[1, 2], x0 + w * matrix[2, 2]
                k, j, i = int(np.floor(z)), int(np.floor(y)), int(np.floor(x))
                u, v, t = z - k, y - j, x - i
                near_k, near_j, near_i = k + (u > 0.5), j + (v > 0.5), i + (t > 0.5)
                inside = 0 <= near_k < size[0] and 0 <= near_j < size[1] and 0 <= near_i < size[2]
                if not inside:
                    labels[w] = 0
                    for c in range(channels):
                        rows[c, w] = ZERO
                    continue
                nearest = (near_k * size[1] + near_j) * size[2] + near_i
                labels[w] = truth[np.uint64(nearest)]
                # Outside the volume is background: its weight is zero, and its place any inside.
                u0 = np.float32(1 - u) if k >= 0 else ZERO
                u1 = np.float32(u) if k + 1 < size[0] else ZERO
                v0 = np.float32(1 - v) if j >= 0 else ZERO
                v1 = np.float32(v) if j + 1 < size[1] else ZERO
                t0 = np.float32(1 - t) if i >= 0 else ZERO
                t1 = np.float32(t) if i + 1 < size[2] else ZERO
                down = plane if k >= 0 and k + 1 < size[0] else np.uint64(0)
                back = row if j >= 0 and j + 1 < size[1] else np.uint64(0)
                right = one if i >= 0 and i + 1 < size[2] else np.uint64(0)
                corner = (max(k, 0) * size[1] + max(j, 0)) * size[2] + max(i, 0)
                for c in range(channels):
                    if bits[np.uint64(c * room + nearest)] & NO_SIGN == 0:
                        rows[c, w] = ZERO
                        continue
                    p = np.uint64(c * room + corner)
                    q = p + down
                    top = v0 * (t0 * widened(bits[p]) + t1 * widened(bits[p + right])) + v1 * (
                        t0 * widened(bits[p + back]) + t1 * widened(bits[p + back + right])
                    )
                    bottom = v0 * (t0 * widened(bits[q]) + t1 * widened(bits[q + right])) + v1 * (
                        t0 * widened(bits[q + back]) + t1 * widened(bits[q + back + right])
                    )
                    rows[c, w] = u0 * top + u1 * bottom + TINY


def stretch(
    x: Array, scale: float, shift: float, low: float = -np.inf, high: float = np.inf
) -> None:
    """Multiply by the scale, add the shift, and keep the result between low and high."""
    _stretch(x.reshape(-1), *(np.float32(number) for number in (scale, shift, low, high)))


@compiled
def _stretch(x: Array, scale: Any, shift: Any, low: Any, high: Any) -> None:
    for i in range(x.size):
        moved = min(max(scale * x[i] + shift, low), high) + TINY
        x[i] = moved if x[i] != ZERO else ZERO


@compiled
def statistics(x: Array) -> tuple[float, float, float, float]:
    """Give mean, deviation, least and greatest of what is not background; of nothing, zeros."""
    width = x.shape[2]
    # One lane for each place in a row: a single sum would have to be added up in its order.
    total, squares, count = np.zeros(width), np.zeros(width), np.zeros(width, np.int32)
    low, high = np.full(width, np.float32(np.inf)), np.full(width, np.float32(-np.inf))
    for d in range(x.shape[0]):
        for h in range(x.shape[1]):
            row = x[d, h]
            for w in range(width):
                is_brain = row[w] != ZERO
                total[w] += row[w]
                squares[w] += np.float64(row[w]) * np.float64(row[w])
                count[w] += np.int32(is_brain)
                low[w] = row[w] if is_brain and row[w] < low[w] else low[w]
                high[w] = row[w] if is_brain and row[w] > high[w] else high[w]
    n = count.sum()
    if n == 0:
        return 0.0, 0.0, 0.0, 0.0
    mean = total.sum() / n
    return mean, np.sqrt(max(squares.sum() / n - mean * mean, 0.0)), low.min(), high.max()


@compiled
def bend(x: Array, sign: int, low: float, span: float, power: float) -> None:
    """Raise what lies between low and low + span, times the sign, to a power of its share of it."""
    positive, lowest, wide = np.float32(sign), np.float32(low), np.float32(span)
    per, exponent = np.float32(1 / span), np.float32(power)
    flat = x.reshape(-1)
    for i in range(flat.size):
        share = (positive * flat[i] - lowest) * per
        bent = wide * _power(min(max(share, TINY), ONE), exponent) + TINY
        flat[i] = bent if flat[i] != ZERO else ZERO


# Of the series of log2 around one and of 2^x around zero.
L1, L3, L5, L7, L9 = (np.float32(2 / np.log(2) / n) for n in (1, 3, 5, 7, 9))
E1, E2, E3, E4, E5, E6 = (
    np.float32(np.log(2) ** n / np.prod(np.arange(1.0, n + 1))) for n in range(1, 7)
)
ROOT, LEAST, ROUNDING = np.float32(np.sqrt(2)), np.float32(-126), np.float32(1.5 * 2**23)


@compiled
def _power(base: Any, exponent: Any) -> Any:
    """Raise a number of (0, 1] to a power; many at once, which the library's function cannot."""
    bits = np.float32(base).view(np.int32)
    mantissa = np.int32((bits & np.int32(0x7FFFFF)) | np.int32(0x3F800000)).view(np.float32)
    whole = np.float32(np.int32(bits >> np.int32(23)) - np.int32(127))
    is_large = mantissa > ROOT
    mantissa, whole = (
        (mantissa * HALF if is_large else mantissa),
        (whole + ONE if is_large else whole),
    )
    # Not the operator, which would look for zero.
    s = np.divide(mantissa - ONE, mantissa + ONE)
    q = s * s
    log = whole + s * (L1 + q * (L3 + q * (L5 + q * (L7 + q * L9))))
    y = max(exponent * log, LEAST)
    # Rounded by the last bits of a large number, which then are the exponent.
    rounded = y + ROUNDING
    f = y - (rounded - ROUNDING)
    series = ONE + f * (E1 + f * (E2 + f * (E3 + f * (E4 + f * (E5 + f * E6)))))
    exponent_bits = np.int32(np.float32(rounded).view(np.int32) << np.int32(23))
    return series * np.int32(exponent_bits + np.int32(0x3F800000)).view(np.float32)


def gaussian(sigma: float) -> Array:
    """Give the weights of a blur, as far as three deviations."""
    radius = ceil(3 * sigma)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return weights / weights.sum()


@compiled
def blur(x: Array, weights: Array) -> None:
    """Blur along the three axes; at its faces the volume goes on as it ends."""
    depth, height, width = x.shape
    radius = weights.size // 2
    blurred = np.empty_like(x)
    wide = np.empty(width + 2 * radius, np.float32)
    for d in range(depth):
        for h in range(height):
            wide[:] = ZERO
            for k in range(weights.size):
                row = x[d, min(max(h + k - radius, 0), height - 1)]
                weight = weights[k]
                for w in range(width):
                    wide[radius + w] += weight * row[w]
            wide[:radius], wide[radius + width :] = wide[radius], wide[radius + width - 1]
            target = blurred[d, h]
            target[:] = ZERO
            for k in range(weights.size):
                weight, part = weights[k], wide[k : k + width]
                for w in range(width):
                    target[w] += weight * part[w]
    total = np.empty(height * width, np.float32)
    for d in range(depth):
        total[:] = TINY
        for k in range(weights.size):
            plane = blurred[min(max(d + k - radius, 0), depth - 1)].reshape(-1)
            weight = weights[k]
            for i in range(total.size):
                total[i] += weight * plane[i]
        flat = x[d].reshape(-1)
        for i in range(total.size):
            flat[i] = total[i] if flat[i] != ZERO else ZERO


def coarsen(x: Array, zoom: float) -> None:
    """Show a channel as if its voxels were 1 / zoom as wide: nearest down, linear up."""
    axes = [_down_and_up(length, max(1, round(length * zoom))) for length in x.shape]
    taken, low, high, share = (tuple(parts) for parts in zip(*axes, strict=True))
    _coarsen(x, taken, low, high, share)


def _down_and_up(length: int, coarse: int) -> tuple[Array, Array, Array, Array]:
    """Give the places that stay, and for each place the two of these around it and their share."""
    f32 = np.float32
    taken = np.floor((np.arange(coarse, dtype=f32) + f32(0.5)) * f32(length / coarse))
    place = (np.arange(length, dtype=f32) + f32(0.5)) * f32(coarse / length) - f32(0.5)
    place = np.maximum(place, f32(0))
    low = place.astype(np.int64)
    high = np.minimum(low + 1, coarse - 1)
    return np.minimum(taken, length - 1).astype(np.int64), low, high, place - low.astype(f32)


@compiled
def _coarsen(x: Array, taken: Any, low: Any, high: Any, share: Any) -> None:
    depth, height, width = taken[0].size, taken[1].size, taken[2].size
    small = np.empty((depth, height, width), np.float32)
    for d in range(depth):
        for h in range(height):
            row, target = x[taken[0][d], taken[1][h]], small[d, h]
            for w in range(width):
                target[w] = row[taken[2][w]]
    plane, mixed_row = np.empty(height * width, np.float32), np.empty(width, np.float32)
    for d in range(x.shape[0]):
        b = share[0][d]
        above, below = small[low[0][d]].reshape(-1), small[high[0][d]].reshape(-1)
        for i in range(plane.size):
            plane[i] = (ONE - b) * above[i] + b * below[i]
        for h in range(x.shape[1]):
            b = share[1][h]
            at, to = low[1][h] * width, high[1][h] * width
            front, back = plane[at : at + width], plane[to : to + width]
            for w in range(width):
                mixed_row[w] = (ONE - b) * front[w] + b * back[w]
            row = x[d, h]
            for w in range(row.size):
                b = share[2][w]
                value = (ONE - b) * mixed_row[low[2][w]] + b * mixed_row[high[2][w]] + TINY
                row[w] = value if row[w] != ZERO else ZERO
