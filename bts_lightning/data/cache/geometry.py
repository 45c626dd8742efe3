"""Where the voxels of a prepared case lie on the grid of its files."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# First and one-past-last index along each array axis.
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class Geometry:
    """The grid of the files, the box that was cut from it, and how its label values are written.

    Attributes:
        affine: 4×4 rows, voxel index to millimetres, as NIfTI has it.
        shape: of the files.
        box: what `image` and `label` hold of it.
        label_values: value in the file -> stored class.
    """

    affine: tuple[tuple[float, ...], ...]
    shape: tuple[int, int, int]
    box: Box
    label_values: dict[int, int]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Give the voxel size in millimetres along each array axis."""
        x, y, z = np.linalg.norm(np.array(self.affine)[:3, :3], axis=0).tolist()
        return x, y, z

    @property
    def size(self) -> tuple[int, int, int]:
        """Give the lengths of the box."""
        d, h, w = (high - low for low, high in self.box)
        return d, h, w

    @property
    def origin(self) -> tuple[int, int, int]:
        """Give the first voxel of the box in the full grid."""
        (d, _), (h, _), (w, _) = self.box
        return d, h, w

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Give the box as slices of the full grid."""
        x, y, z = (slice(low, high) for low, high in self.box)
        return x, y, z

    @property
    def file_values(self) -> dict[int, int]:
        """Give stored class -> value in the file; where two values mean one class, the first."""
        values: dict[int, int] = {}
        for in_file, stored in self.label_values.items():
            values.setdefault(stored, in_file)
        return values

    def in_file(self, label_map: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Give the values that stored classes have in files."""
        values = self.file_values
        # The one class that files may not number is the non-enhancing core of `brats2015`: since
        # 2017 it has been one with the necrosis.
        table = np.full(max(values) + 1, values.get(1, 0), dtype=np.uint8)
        table[list(values)] = list(values.values())
        return table[label_map]

    def uncrop(self, array: NDArray[Any]) -> NDArray[Any]:
        """Put an array ...×D×H×W back where it was cut, zero around it."""
        if array.shape[-3:] != self.size:
            raise ValueError(
                f"array has spatial shape {array.shape[-3:]}; the box holds {self.size}"
            )
        full = np.zeros((*array.shape[:-3], *self.shape), dtype=array.dtype)
        full[..., *self.slices] = array
        return full

    def to_json(self) -> dict[str, Any]:
        """Give plain values; JSON spells the keys of `label_values` as text."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Geometry":
        """Read what `to_json` gave, after a way through a file."""
        d, h, w = content["shape"]
        (d0, d1), (h0, h1), (w0, w1) = content["box"]
        return cls(
            affine=tuple(tuple(row) for row in content["affine"]),
            shape=(d, h, w),
            box=((d0, d1), (h0, h1), (w0, w1)),
            label_values={int(k): int(v) for k, v in content["label_values"].items()},
        )


def box_around(inside: NDArray[np.bool_]) -> Box:
    """Bound the true voxels; the whole grid when there is none."""
    d, h, w = (_bounds(np.any(inside, axis=others)) for others in ((1, 2), (0, 2), (0, 1)))
    return d, h, w


def grown(box: Box, shape: tuple[int, int, int], least: int) -> Box:
    """Grow each side to `least` voxels around its middle, moved and cut to lie within the grid."""
    d, h, w = (
        _grown(low, high, length, least) for (low, high), length in zip(box, shape, strict=True)
    )
    return d, h, w


def _bounds(line: NDArray[Any]) -> tuple[int, int]:
    found = np.flatnonzero(line)
    return (int(found[0]), int(found[-1]) + 1) if found.size else (0, line.size)


def _grown(low: int, high: int, length: int, least: int) -> tuple[int, int]:
    size = min(max(high - low, least), length)
    start = min(max((low + high - size) // 2, 0), length - size)
    return start, start + size
