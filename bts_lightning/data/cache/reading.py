"""Read the files of a case and refuse, with every reason at once, what cannot be right."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bts_lightning.data.cache.nifti import Nifti, UnreadableError, read_nifti
from bts_lightning.data.layouts.case import Case, Fault
from bts_lightning.errors import DataError
from bts_lightning.modalities import Modality

# Largest distance in mm between the same corner of two grids. Headers of one scan differ by
# rounding, about 1e-4; a grid that is really another one is off by a voxel or more.
CORNER_TOLERANCE = 0.1


class BrokenCaseError(DataError):
    """A case cannot be used; `faults` says why, file by file."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("; ".join(map(str, faults)))
        self.faults = faults


@dataclass(frozen=True)
class Volumes:
    """The voxels of a case on one grid: images as in their files, the label in stored classes."""

    images: dict[Modality, NDArray[Any]]
    label: NDArray[np.uint8] | None
    label_found: tuple[int, ...]
    affine: NDArray[np.float64]
    digests: dict[Path, str]


def read_volumes(case: Case, scheme: str = "brats") -> Volumes:
    """Read and check every file of a case.

    Args:
        scheme: what is stored of its label.

    Raises:
        BrokenCaseError: with all faults of the case, not only the first.
    """
    values = case.stored_values(scheme)
    faults: list[Fault] = []
    files: dict[Path, Nifti] = {}
    for path in case.files:
        try:
            files[path] = read_nifti(path)
        except UnreadableError as error:
            faults.append(Fault(case.name, path, str(error)))
    images: dict[Modality, NDArray[Any]] = {}
    for modality, path in case.images.items():
        if path not in files:
            continue
        channel = case.channels.get(modality)
        reason = _shape_fault(files[path].array, case, channel)
        if reason is None:
            images[modality] = _channel(files[path].array, channel)
            reason = _content_fault(images[modality])
        if reason is not None:
            faults.append(Fault(case.name, path, _of(modality, channel) + reason))
    label: NDArray[np.uint8] | None = None
    found: tuple[int, ...] = ()
    if case.label in files:
        label, found, reason = _label(files[case.label].array, case.layout, values)
        if reason is not None:
            faults.append(Fault(case.name, case.label, reason))
    faults += _grid_faults(case, files)
    if faults:
        raise BrokenCaseError(list(dict.fromkeys(faults)))
    first = files[case.files[0]]
    digests = {path: file.digest for path, file in files.items()}
    return Volumes(images, label, found, first.affine, digests)


def _shape_fault(array: NDArray[Any], case: Case, channel: int | None) -> str | None:
    dimensions = 3 if channel is None else 4
    if array.ndim != dimensions:
        return f"has shape {_times(array.shape)}; expected {dimensions} dimensions"
    if channel is not None and array.shape[3] != len(case.channels):
        return f"has {array.shape[3]} channels; expected {len(case.channels)}"
    return None


def _channel(array: NDArray[Any], channel: int | None) -> NDArray[Any]:
    return array if channel is None else array[..., channel]


def _content_fault(array: NDArray[Any]) -> str | None:
    if array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
        return f"{int((~finite).sum()):,} voxels are NaN or infinite"
    low, high = array.min(), array.max()
    if low == high == 0:
        return "empty, every voxel is 0; if it was not acquired, leave the file out"
    # Slab by slab: the first one that cuts the brain settles it.
    if not any(((slab != 0) & (slab != high)).any() for slab in array.T):
        return f"no contrast, every voxel of the brain is {high}"
    return None


def _of(modality: Modality, channel: int | None) -> str:
    return "" if channel is None else f"channel {channel} ({modality}): "


def _label(
    array: NDArray[Any], layout: str, stored: Mapping[int, int]
) -> tuple[NDArray[np.uint8] | None, tuple[int, ...], str | None]:
    if array.ndim != 3:
        return None, (), f"has shape {_times(array.shape)}; expected 3 dimensions"
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return None, (), "has NaN or infinite label values"
    # F order as in the file: a flat view, no copy.
    values = np.unique(array.ravel(order="K")) if array.dtype.kind == "f" else _distinct(array)
    unknown = [value for value in values.tolist() if value not in stored]
    if unknown:
        shown = ", ".join(f"{value:g}" for value in unknown[:5])
        known = ", ".join(map(str, stored))
        reason = f"unknown label value {shown}; {layout} has {known}"
        return None, (), f"{reason}; the labels column of a manifest names other meanings"
    table = np.zeros(max(stored) + 1, dtype=np.uint8)
    table[list(stored)] = list(stored.values())
    found = tuple(int(value) for value in values)
    return table[array.astype(np.uint8, copy=False)], found, None


def _distinct(array: NDArray[Any]) -> NDArray[Any]:
    """Find the values of an integer array; when small, without sorting 9 million voxels."""
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > 255:
        return np.unique(array)
    return np.flatnonzero(np.bincount(array.ravel(order="K").astype(np.uint8, copy=False)))


def _grid_faults(case: Case, files: dict[Path, Nifti]) -> list[Fault]:
    """Compare every file's grid with the one that most files have."""
    readable = [path for path in case.files if path in files and files[path].array.ndim >= 3]
    differences = {
        measure: {
            path: reason
            for path in readable
            if (reason := _difference(files[path], files[measure], measure.name))
        }
        for measure in readable
    }
    fewest = min(differences.values(), key=len, default={})
    return [Fault(case.name, path, reason) for path, reason in fewest.items()]


def _difference(other: Nifti, measure: Nifti, name: str) -> str | None:
    shapes = other.array.shape[:3], measure.array.shape[:3]
    if shapes[0] != shapes[1]:
        return f"another grid: {_times(shapes[0])} voxels, {name} has {_times(shapes[1])}"
    distance = _corner_distance(measure, other)
    if distance > CORNER_TOLERANCE:
        return f"another grid: its affine puts a corner {distance:.1f} mm from that of {name}"
    return None


def _corner_distance(first: Nifti, other: Nifti) -> float:
    last = np.array(first.array.shape[:3]) - 1
    corners = np.stack(np.meshgrid(*([0, n] for n in last), [1], indexing="ij"), axis=-1)
    offset = corners.reshape(-1, 4) @ (first.affine - other.affine).T
    return float(np.linalg.norm(offset[:, :3], axis=1).max())


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
