"""Axial slices of a case with its expert and predicted labels, small enough to keep and to show."""

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

import numpy as np
from nibabel.orientations import aff2axcodes

from bts_lightning.errors import DataError
from bts_lightning.files import write_whole

FOLDER = "slices"


@dataclass(frozen=True)
class CaseSlices:
    """Hold K axial slices as a radiologist looks at them: patient's right is left, front is up."""

    case: str
    images: np.ndarray  # 4×K×H×W uint8; 0 is background or an absent modality
    truth: np.ndarray | None  # K×H×W uint8 label map; None for a case without label
    predicted: np.ndarray  # S×K×H×W uint8 label maps
    subsets: list[str]
    positions: list[int]  # their indices on the original grid, from the feet up
    spacing: tuple[float, float]  # millimetres of a row and of a column


def choose_slices(
    case: str,
    image: np.ndarray,
    truth: np.ndarray | None,
    predicted: np.ndarray,
    subsets: Sequence[str],
    *,
    spacing: tuple[float, float, float],
    affine: np.ndarray | None = None,
    start: tuple[int, int, int] = (0, 0, 0),
    count: int = 12,
) -> CaseSlices:
    """Cut `count` axial slices through the tumour out of volumes in NIfTI axis order.

    `image` is 4×D×H×W with background 0, `truth` D×H×W, `predicted` S×D×H×W. Without an affine the
    axes are taken to run to the left, back and top, as in the BraTS files. `start` is where a
    cropped volume begins on its original grid, so that its slices can be found in the files again.
    """
    axes, flipped = to_display(affine)
    pictures, found = _turn(image, axes, flipped), _turn(predicted, axes, flipped)  # N K H W
    expert = None if truth is None else _turn(truth[None], axes, flipped)[0]
    chosen = _through_tumour(pictures, found, expert, count)
    depth = found.shape[1]
    column, row, slice_ = axes
    return CaseSlices(
        case,
        np.stack([_grey(modality)[chosen] for modality in pictures]),
        None if expert is None else expert[chosen].astype(np.uint8),
        found[:, chosen].astype(np.uint8),
        list(subsets),
        [start[slice_] + (depth - 1 - k if flipped[2] else k) for k in chosen],
        (float(spacing[row]), float(spacing[column])),
    )


def save_slices(folder: Path, slices: CaseSlices) -> Path:
    """Keep one case's slices beside the evaluation table, whole or not at all."""
    facts = {
        "case": slices.case,
        "subsets": slices.subsets,
        "positions": slices.positions,
        "spacing": slices.spacing,
    }
    arrays = {
        "facts": np.array(json.dumps(facts)),
        "images": slices.images,
        "predicted": slices.predicted,
    }
    if slices.truth is not None:
        arrays["truth"] = slices.truth
    buffer = BytesIO()
    np.savez_compressed(buffer, **arrays, allow_pickle=False)
    return write_whole(_file(folder, slices.case), buffer.getvalue())


def load_slices(folder: Path, cases: Sequence[str] | None = None) -> list[CaseSlices]:
    """Read kept slices back, all of them or those of some cases; cases without any are left out."""
    files = sorted((folder / FOLDER).glob("*.npz"))
    if cases is not None:
        files = [file for file in (_file(folder, case) for case in cases) if file in files]
    return [_load(file) for file in files]


def keep_slices(folder: Path, cases: Sequence[str]) -> None:
    """Delete the slices of all other cases: one case takes about a megabyte, a report shows few."""
    kept = {_file(folder, case) for case in cases}
    for file in (folder / FOLDER).glob("*.npz"):
        if file not in kept:
            file.unlink(missing_ok=True)


def _file(folder: Path, case: str) -> Path:
    """Name the file of a case; quoted, because a manifest may call it anything, `a/b` included."""
    return folder / FOLDER / f"{quote(case, safe='')}.npz"


def _load(file: Path) -> CaseSlices:
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as kept:
            facts = json.loads(str(kept["facts"]))
            truth = kept.get("truth")
            row, column = facts["spacing"]
            return CaseSlices(
                facts["case"],
                kept["images"],
                truth,
                kept["predicted"],
                facts["subsets"],
                facts["positions"],
                (row, column),
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as fault:
        raise DataError(
            f"{file}: not readable as slices ({fault}); delete it and evaluate again"
        ) from fault


def to_display(affine: np.ndarray | None) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Say which array axes run left-right, back-front and feet-head, and which to turn round."""
    codes = ("L", "P", "S") if affine is None else aff2axcodes(affine)
    axes, flipped = [], []
    for forward, backward in (("L", "R"), ("P", "A"), ("S", "I")):
        axis = next(i for i, code in enumerate(codes) if code in (forward, backward))
        axes.append(axis)
        flipped.append(codes[axis] == backward)
    return (axes[0], axes[1], axes[2]), (flipped[0], flipped[1], flipped[2])


def _turn(
    volumes: np.ndarray, axes: tuple[int, int, int], flipped: tuple[bool, bool, bool]
) -> np.ndarray:
    column, row, slice_ = axes
    turned = volumes.transpose(0, slice_ + 1, row + 1, column + 1)  # N K H W
    turn = [slice(None, None, -1 if flip else 1) for flip in (flipped[2], flipped[1], flipped[0])]
    return turned[(slice(None), *turn)]


def _through_tumour(
    pictures: np.ndarray, found: np.ndarray, expert: np.ndarray | None, count: int
) -> list[int]:
    """Spread slices evenly over the tumour, its largest cross-section among them."""
    area = (found if expert is None else expert[None]) > 0
    if not area.any():  # no tumour in the truth: show where one was predicted, or else the brain
        area = found > 0 if (found > 0).any() else pictures != 0
    sizes = area.sum(axis=(0, 2, 3))
    inside = np.flatnonzero(sizes)
    first, last = (int(inside[0]), int(inside[-1])) if len(inside) else (0, len(sizes) - 1)
    spread = np.linspace(first, last, min(count, last - first + 1)).round().astype(int)
    largest = int(sizes.argmax())
    spread[np.abs(spread - largest).argmin()] = largest
    return [int(position) for position in np.unique(spread)]


def _grey(volume: np.ndarray) -> np.ndarray:
    """Map the brain of one modality to 1..255 between its outer half percents, background to 0."""
    brain = volume != 0
    if not brain.any():
        return np.zeros(volume.shape, np.uint8)
    low, high = np.percentile(volume[brain].astype(np.float32), [0.5, 99.5])
    scaled = (volume.astype(np.float32) - low) / max(high - low, 1e-6)
    return np.where(brain, 1 + 254 * np.clip(scaled, 0, 1), 0).astype(np.uint8)
