"""Small data sets in the true file naming of each release, for all tests that read one."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bts_lightning.modalities import MODALITIES, Modality

SIZE = (20, 18, 16)
# The affine of BraTS files since 2017, at any size.
AFFINE = np.array([[-1.0, 0, 0, 0], [0, -1.0, 0, 239], [0, 0, 1.0, 0], [0, 0, 0, 1]])

Style = Literal["classic", "modern"]
_SUFFIXES: dict[Style, dict[Modality, str]] = {
    "classic": {"t1": "_t1", "t1c": "_t1ce", "t2": "_t2", "flair": "_flair"},
    "modern": {"t1": "-t1n", "t1c": "-t1c", "t2": "-t2w", "flair": "-t2f"},
}
_LABEL_SUFFIX: dict[Style, str] = {"classic": "_seg", "modern": "-seg"}


def volume(seed: int, size: Sequence[int] = SIZE) -> NDArray[np.int16]:
    """Make a head of random positive values with a dark margin of three voxels or more."""
    values = np.random.default_rng(seed).integers(50, 1000, size=size).astype(np.int16)
    return np.where(brain(size), values, 0).astype(np.int16)


def brain(size: Sequence[int] = SIZE) -> NDArray[np.bool_]:
    """Make the ellipsoid that every modality of a case shares."""
    axes = [(np.arange(n) - (n - 1) / 2) / (n / 2 - 2.5) for n in size]
    grid = np.meshgrid(*axes, indexing="ij")
    return np.asarray(sum(axis**2 for axis in grid) <= 1)


def tumour(
    values: tuple[int, int, int] = (1, 2, 4), size: Sequence[int] = SIZE
) -> NDArray[np.uint8]:
    """Make a label with 8 voxels of NCR, 20 of ED and 28 of ET, written with these values."""
    label = np.zeros(size, dtype=np.uint8)
    x, y, z = (n // 2 for n in size)
    label[x - 2 : x + 2, y - 2 : y + 2, z - 2 : z] = values[2]
    label[x - 2 : x + 2, y - 2 : y + 1, z : z + 2] = values[1]
    label[x - 1 : x + 1, y - 1 : y + 1, z - 1 : z + 1] = values[0]
    return label


def write_image(path: Path, array: NDArray[Any], affine: NDArray[np.float64] = AFFINE) -> Path:
    """Save an array as NIfTI, making the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def write_case(
    folder: Path,
    *,
    style: Style = "classic",
    seed: int = 0,
    modalities: Sequence[Modality] = MODALITIES,
    label: NDArray[Any] | None = None,
    ending: str = ".nii.gz",
) -> Path:
    """Save a case in its folder, its files named after that; the seed fixes all voxels."""
    for offset, modality in enumerate(MODALITIES):
        if modality in modalities:
            name = f"{folder.name}{_SUFFIXES[style][modality]}{ending}"
            write_image(folder / name, volume(4 * seed + offset))
    if label is not None:
        write_image(folder / f"{folder.name}{_LABEL_SUFFIX[style]}{ending}", label)
    return folder


def write_brats2018(root: Path) -> Path:
    """Two grades in two folders."""
    write_case(root / "HGG" / "Brats18_TCIA01_131_1", seed=0, label=tumour())
    write_case(root / "LGG" / "Brats18_2013_0_1", seed=1, label=tumour())
    return root


def write_brats2019(root: Path) -> Path:
    """As 2018, under another name."""
    write_case(root / "HGG" / "BraTS19_CBICA_AAB_1", seed=0, label=tumour(), ending=".nii")
    write_case(root / "LGG" / "BraTS19_TCIA09_141_1", seed=1, label=tumour(), ending=".nii")
    return root


def write_brats2020(root: Path) -> Path:
    """A folder more, plain and packed files, a case without a label, and case 355 as released."""
    home = root / "MICCAI_BraTS2020_TrainingData"
    write_case(home / "BraTS20_Training_001", seed=0, label=tumour())
    write_case(home / "BraTS20_Training_002", seed=1, label=tumour(), ending=".nii")
    write_case(home / "BraTS20_Validation_003", seed=3)
    odd = write_case(home / "BraTS20_Training_355", seed=2, ending=".nii")
    write_image(odd / "W39_1998.09.19_Segm.nii", tumour())
    (home / "name_mapping.csv").write_text("Grade,BraTS_2020_subject_ID\n")
    return root


def write_brats2021(root: Path, cases: int = 3) -> Path:
    """Numbered cases; the phantom is written like this too."""
    for number in range(cases):
        write_case(root / f"BraTS2021_{number:05d}", seed=number, label=tumour())
    return root


def write_brats2023(root: Path) -> Path:
    """Two time points of one patient and one of another; ET is 3."""
    for seed, name in enumerate(("00000-000", "00000-001", "00002-000")):
        write_case(root / f"BraTS-GLI-{name}", style="modern", seed=seed, label=tumour((1, 2, 3)))
    return root


def write_brats_met(root: Path) -> Path:
    """Metastases (BraTS-MET 2023): two scans of one patient and one of another; ET is 3."""
    for seed, name in enumerate(("00001-000", "00001-001", "00002-000")):
        write_case(root / f"BraTS-MET-{name}", style="modern", seed=seed, label=tumour((1, 2, 3)))
    return root


def write_brats2024(root: Path) -> Path:
    """After treatment: time points count from 100 and 4 is the resection cavity."""
    label = tumour((1, 2, 3))
    label[3:5, 8:10, 8:10] = 4
    for seed, name in enumerate(("00005-100", "00005-101")):
        write_case(root / f"BraTS-GLI-{name}", style="modern", seed=seed, label=label)
    return root


def write_decathlon(root: Path) -> Path:
    """4-D files, the channel order and the label values of Task01, one case without a label."""
    home = root / "Task01_BrainTumour"
    order: tuple[Modality, ...] = ("flair", "t1", "t1c", "t2")
    for seed, (folder, name) in enumerate(
        (("imagesTr", "BRATS_001"), ("imagesTr", "BRATS_002"), ("imagesTs", "BRATS_485"))
    ):
        channels = [volume(4 * seed + MODALITIES.index(modality)) for modality in order]
        write_image(home / folder / f"{name}.nii.gz", np.stack(channels, axis=-1))
        if folder == "imagesTr":
            # NCR is 2 here, ED 1 and ET 3.
            write_image(home / "labelsTr" / f"{name}.nii.gz", tumour((2, 1, 3)))
    # What macOS leaves in the archive.
    (home / "imagesTr" / "._BRATS_001.nii.gz").write_bytes(b"Mac OS X")
    description = {
        "name": "BRATS",
        "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
        "labels": {
            "0": "background",
            "1": "edema",
            "2": "non-enhancing tumor",
            "3": "enhancing tumour",
        },
    }
    (home / "dataset.json").write_text(json.dumps(description))
    return root


def write_bids(root: Path) -> Path:
    """Two sessions of one subject and a subject without sessions; labels are derivatives."""
    names: dict[Modality, str] = {
        "t1": "T1w",
        "t1c": "ce-gadolinium_T1w",
        "t2": "T2w",
        "flair": "FLAIR",
    }
    for seed, case in enumerate(("sub-01_ses-01", "sub-01_ses-02", "sub-02")):
        inside = Path(*case.split("_"), "anat")
        for offset, modality in enumerate(MODALITIES):
            name = f"{case}_{names[modality]}.nii.gz"
            write_image(root / inside / name, volume(4 * seed + offset))
        label = root / "derivatives" / "raters" / inside / f"{case}_dseg.nii.gz"
        write_image(label, tumour((1, 2, 3)))
    return root


def write_manifest(root: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    """Save `manifest.csv` with a column for every key that occurs."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    root.mkdir(parents=True, exist_ok=True)
    path = root / "manifest.csv"
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows(rows)
    return path


def write_manifest_set(root: Path) -> Path:
    """Files under names of their own; the second patient has T1c and FLAIR alone."""
    for seed, name in enumerate(("anna", "berta")):
        for offset, modality in enumerate(MODALITIES):
            write_image(root / "scans" / f"{name} {modality}.nii.gz", volume(4 * seed + offset))
        write_image(root / "scans" / f"{name} lesion.nii.gz", tumour())
    everything: dict[str, str] = {m: f"scans/anna {m}.nii.gz" for m in MODALITIES}
    two: dict[str, str] = {m: f"scans/berta {m}.nii.gz" for m in ("t1c", "flair")}
    write_manifest(
        root,
        [
            {
                "case": "anna",
                **everything,
                "label": "scans/anna lesion.nii.gz",
                "labels": "brats2021",
            },
            {"case": "berta-2", "patient": "berta", **two},
        ],
    )
    return root
