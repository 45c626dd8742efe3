"""The label rule and the statistics of the training files (see `tests/golden_train/README.md`)."""

import math

import numpy as np

from tests.golden.fill_rule import Array, mix, noise


def make_label(size: int, batch: int, variant: int) -> Array:
    """Give (batch, size, size, size) stored labels: a smooth tumour, with a speckle.

    The speckle makes visible which voxel of a cell a coarser label takes. Every fourth sample has
    no enhancing tumour.
    """
    b, z, y, x = np.meshgrid(
        *[np.arange(d, dtype=np.int64) for d in (batch, size, size, size)],
        indexing="ij",
        sparse=True,
    )
    cz = size // 2 + (3 * b + 5 * variant) % 7 - 3
    cy = size // 2 + (5 * b + 3 * variant) % 7 - 3
    cx = size // 2 + (2 * b + variant) % 7 - 3
    q, r = 100 * (4 * (z - cz) ** 2 + 6 * (y - cy) ** 2 + 9 * (x - cx) ** 2), size * size
    label = np.where(q < 9 * r, 3, np.where(q < 25 * r, 1, np.where(q < 47 * r, 2, 0)))
    linear = np.arange(label.size).reshape(label.shape)
    h = mix(linear + 15485863 * (variant + 1)).astype(np.int64)
    label = np.where(h % 8 == 0, (label + 1 + h // 8 % 3) % 4, label)
    return np.where((b % 4 == 3) & (label == 3), 1, label).astype(np.uint8)


def summary(values: Array) -> Array:
    """Give the norm of a tensor and its projection onto fixed noise."""
    a = np.asarray(values, np.float64).ravel()
    projection = a @ noise(np.arange(a.size) + 104729) / math.sqrt(a.size)
    return np.array([np.linalg.norm(a), projection])
