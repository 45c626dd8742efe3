"""The head's coordinates in millimetres, and random fields that are the same on every grid."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Box = tuple[slice, slice, slice]

# The grid that every BraTS volume since 2017 has, with voxels of one millimetre.
FULL_SIZE = (240, 240, 155)
# Variance that cubic B-splines leave of white noise, per axis: the mean of the squared weights.
SPLINE_VARIANCE = 151 / 315


@dataclass(frozen=True)
class Grid:
    """Voxel centres along the array axes, in mm from the first voxel of the full-size grid."""

    axes: tuple[Array, Array, Array]

    @property
    def shape(self) -> tuple[int, int, int]:
        x, y, z = (len(axis) for axis in self.axes)
        return x, y, z

    def crop(self, box: Box) -> "Grid":
        x, y, z = (axis[part] for axis, part in zip(self.axes, box, strict=True))
        return Grid((x, y, z))

    def mesh(self) -> Array:
        """Give the coordinates of every voxel, 3×X×Y×Z."""
        return np.stack(np.meshgrid(*self.axes, indexing="ij"))


def head_grid(size: tuple[int, int, int]) -> Grid:
    """Cover the full field of view with `size` voxels: fewer are larger, the head is the same."""
    x, y, z = (
        ((np.arange(n) + 0.5) * full / n - 0.5).astype(np.float32)
        for n, full in zip(size, FULL_SIZE, strict=True)
    )
    return Grid((x, y, z))


def spacing(size: tuple[int, int, int]) -> tuple[float, float, float]:
    """Give the edges of a voxel in mm."""
    x, y, z = (full / n for n, full in zip(size, FULL_SIZE, strict=True))
    return x, y, z


def affine(size: tuple[int, int, int]) -> NDArray[np.float64]:
    """Place the grid as BraTS does: axes run left, back and up; origin (0, 239, 0) at 1 mm."""
    x, y, z = spacing(size)
    matrix = np.diag([-x, -y, z, 1.0])
    matrix[:3, 3] = -(x - 1) / 2, 239 - (y - 1) / 2, (z - 1) / 2
    return matrix


def control_grid(step: float) -> Grid:
    """Place a spline's control points over the field of view, with two to spare at each side."""
    x, y, z = (
        ((np.arange(int(np.ceil(full / step)) + 5) - 2) * step).astype(np.float32)
        for full in FULL_SIZE
    )
    return Grid((x, y, z))


def interpolate(control: Array, step: float, grid: Grid) -> Array:
    """Evaluate the cubic B-spline with these control points (see `control_grid`) on a grid.

    Written with element-wise operations alone: a BLAS product may round differently with another
    number of threads, and then the same seed would not give the same bytes.
    """
    x = control
    # The longest array is made last, along the axis whose slabs are contiguous.
    for axis in (2, 1, 0):
        position = grid.axes[axis] / step + 2
        base = np.floor(position).astype(np.intp)
        f = (position - base).astype(np.float32)
        weights = ((1 - f) ** 3, 3 * f**3 - 6 * f**2 + 4, -3 * f**3 + 3 * f**2 + 3 * f + 1, f**3)
        shape = [-1 if i == axis else 1 for i in range(3)]
        total: Array | None = None
        for tap, weight in enumerate(weights):
            part = np.take(x, base - 1 + tap, axis=axis)
            part *= (weight / 6).reshape(shape)
            total = part if total is None else np.add(total, part, out=total)
        assert total is not None
        x = total
    return x


def smooth_noise(rng: np.random.Generator, grid: Grid, scale: float) -> Array:
    """Draw a smooth field of mean 0 and variance 1 whose blobs measure about `scale` mm.

    The generator advances equally for every grid, so one seed is one head at any resolution.
    """
    control = rng.standard_normal(control_grid(scale).shape, dtype=np.float32)
    control /= np.float32(SPLINE_VARIANCE**1.5)
    return interpolate(control, scale, grid)


def box_on(grid: Grid, found: NDArray[np.bool_], step: float) -> Box:
    """Bound in `grid` what was found among the control points, with one to spare at each side."""
    places = np.argwhere(found)
    parts = []
    for axis, centres in enumerate(grid.axes):
        low, high = (places[:, axis].min() - 3) * step, (places[:, axis].max() - 1) * step
        start, stop = (int(i) for i in np.searchsorted(centres, (low, high)))
        parts.append(slice(min(start, len(centres) - 1), max(stop, start + 1)))
    x, y, z = parts
    return x, y, z
