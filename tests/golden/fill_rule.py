"""Fill parameters and inputs as the golden outputs were made (NumPy only, exactly reproducible)."""

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def mix(index: Array) -> Array:
    """Mix the bits of integers below 2**32 (uint64)."""
    z = np.asarray(index, dtype=np.uint64) & np.uint64(0xFFFFFFFF)
    for _ in range(2):
        z = ((z ^ (z >> np.uint64(16))) * np.uint64(0x45D9F3B)) & np.uint64(0xFFFFFFFF)
    return z ^ (z >> np.uint64(16))


def noise(index: Array) -> Array:
    """Turn integers below 2**32 into float64 in [-1, 1) by integer mixing, without rounding."""
    return mix(index).astype(np.float64) / 2147483648.0 - 1.0


def fill(shape: tuple[int, ...], kind: str, salt: int = 0) -> Array:
    """Give the float32 values of one parameter.

    `kind` is "scale" (1-D "weight"), "bias" (any other 1-D) or "matrix" (2-D and more).
    """
    n = math.prod(shape)
    s = [d for d in shape if d != 1] or [1]  # squeezed shape: a 1x1x1 convolution equals a Linear
    h = (sum((i + 1) * d for i, d in enumerate(s)) + salt) % 97
    k = np.arange(n)
    if kind == "scale":
        v = 1.0 + 0.1 * np.sin(0.7 * k + h)
    elif kind == "bias":
        v = 0.05 * np.cos(0.9 * k + h)
    else:  # variance 2 / fan_in, uniform
        fan_in = n / s[0] if len(s) > 1 else n
        v = math.sqrt(6.0 / fan_in) * noise(k + 1000003 * h)
    return v.reshape(shape).astype(np.float32)


def kind_of(name: str, shape: tuple[int, ...]) -> str:
    """Tell the kind from a parameter's dotted name and its ORIGINAL (un-squeezed) shape."""
    return "matrix" if len(shape) > 1 else "scale" if name.split(".")[-1] == "weight" else "bias"


def make_input(size: int, batch: int = 1) -> Array:
    """Give (batch, 4, size, size, size) float32; channels T1, T1c, T2, FLAIR, then axes z, y, x."""
    b, m, z, y, x = np.meshgrid(
        *[np.arange(d, dtype=np.float64) for d in (batch, 4, size, size, size)],
        indexing="ij",
        sparse=True,
    )
    smooth = (
        np.sin((0.11 + 0.04 * m) * z + 0.5 * m + 0.9 * b)
        + np.cos((0.17 - 0.03 * m) * y + 0.07 * x * (m + 1) + 0.3 * b)
        + 0.5 * np.sin(0.05 * (z + 2 * y - 3 * x) + m)
    )
    n = batch * 4 * size**3
    return (
        0.8 * smooth + 0.5 * noise(np.arange(n) + 7919).reshape(batch, 4, size, size, size)
    ).astype(np.float32)


def make_label(size: int) -> Array:
    """Give the label of the recorded losses, (1, size, size, size) uint8: shells of a ball."""
    z, y, x = np.ogrid[:size, :size, :size]
    r = np.sqrt((z - 0.45 * size) ** 2 + (y - 0.5 * size) ** 2 + (x - 0.55 * size) ** 2) / size
    label = np.select([r < 0.12, r < 0.2, r < 0.34], [1, 3, 2])
    return label[None].astype(np.uint8)
