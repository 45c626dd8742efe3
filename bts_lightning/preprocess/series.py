"""Read one series as a scanner or a converter left it, and refuse what is no MR volume."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from bts_lightning.errors import DataError
from bts_lightning.files import regular
from bts_lightning.modalities import Modality

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
# Tags of DICOM, as SimpleITK writes them.
MODALITY, FRAMES, PATIENT = "0008|0060", "0028|0008", ("0010|0020", "0010|0010")
ANNOUNCED, TILT = "0020|1002", "0018|1120"
POSITION, ORIENTATION, PIXELS = "0020|0032", "0020|0037", "0028|0030"
ROWS, COLUMNS = "0028|0010", "0028|0011"
BITS, SYNTAX = "0028|0100", "0002|0010"
UNPACKED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")
# A head is larger; shorter volumes are localisers and slabs, which nothing can be registered to.
SHORTEST_MM = 100.0
# Hounsfield units of air; no magnitude of MR is negative.
AIR = -500.0
# How far slices may lie from even steps, and from a straight line through them, mm.
UNEVEN, SHEARED = 0.1, 0.5

# ITK's own lines tell tags and paths.
sitk.ProcessObject.SetGlobalWarningDisplay(False)


@dataclass(frozen=True)
class Series:
    """A volume in the scanner's coordinates, and what tells it from others.

    Attributes:
        digest: of its voxels.
        names: hidden marks of the patient, from DICOM; in memory alone, never written.
    """

    image: sitk.Image
    digest: str
    names: tuple[str, ...] = field(default=(), repr=False)


def read_all(files: Mapping[Modality, Path]) -> dict[Modality, Series]:
    """Read the series of one patient, and refuse two patients and one series for two."""
    found: dict[Modality, Series] = {}
    for modality, file in files.items():
        found[modality] = series = read_series(file)
        for other in list(found)[:-1]:
            if series.digest == found[other].digest:
                raise DataError(f"--{other} {files[other]} and --{modality} {file} are one series")
            if found[other].names and series.names and found[other].names != series.names:
                raise DataError(
                    f"--{other} {files[other]} and --{modality} {file} are of two patients"
                )
    return found


def read_series(path: Path) -> Series:
    """Read a NIfTI or NRRD file, or a folder with one DICOM series."""
    names: tuple[str, ...] = ()
    if path.is_dir():
        image, names = _dicom(path)
    else:
        try:
            regular(path).close()
        except OSError as error:
            raise DataError(f"{path} cannot be opened: {error.strerror}") from error
        if not path.name.lower().endswith(ENDINGS):
            raise DataError(
                f"{path}: give a file that ends in one of {', '.join(ENDINGS)}, or the folder of a "
                "DICOM series"
            )
        with _named(path):
            image = sitk.ReadImage(str(path))
    _check_shape(path, image)
    image = sitk.Cast(image, sitk.sitkFloat32)
    values = sitk.GetArrayViewFromImage(image)
    _check_values(path, values)
    return Series(image, hashlib.sha256(values.tobytes()).hexdigest(), names)


def _check_shape(path: Path, image: sitk.Image) -> None:
    size = image.GetSize()
    shape = "×".join(map(str, size))
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise DataError(f"{path} has several values a voxel (colours or vectors); give a plain one")
    if len(size) != 3 or min(size) < 2:
        raise DataError(f"{path} has {shape} voxels; expected a volume of three dimensions")
    lengths = [n * edge for n, edge in zip(size, image.GetSpacing(), strict=True)]
    if not min(lengths) >= SHORTEST_MM:
        raise DataError(
            f"{path} covers {'×'.join(f'{length:.0f}' for length in lengths)} mm; a whole head is "
            f"needed, {SHORTEST_MM:.0f} mm each way or more"
        )


def _check_values(path: Path, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise DataError(f"{path} has voxels that are NaN or infinite")
    low, high = float(values.min()), float(values.max())
    if low == high:
        raise DataError(f"{path} is empty: every voxel is {low:g}")
    if low < AIR and float((values < AIR).mean()) > 0.05:
        raise DataError(f"{path} has values down to {low:g}, as a CT or a phase image; give MR")


def _dicom(folder: Path) -> tuple[sitk.Image, tuple[str, ...]]:
    with _named(folder):
        series = [
            (number, sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), number))
            for number in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
        ]
    if not series:
        raise DataError(f"{folder} holds no DICOM image; give the folder of one series")
    if len(series) > 1:
        counts = ", ".join(str(len(files)) for _, files in series)
        raise DataError(
            f"{folder} holds {len(series)} DICOM series (of {counts} files); keep each in a folder "
            "of its own"
        )
    files = [Path(file) for file in series[0][1]]
    # GDCM leaves out in silence what it cannot read.
    if odd := next((file for file in sorted(folder.iterdir()) if _is_odd(file, files)), None):
        raise DataError(f"{odd} is a DICOM file without an image, or damaged; is it truncated?")
    headers = {file: _header(file) for file in files}
    _check_headers(folder, headers)
    ordered = _by_position(folder, headers)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in ordered])
    with _named(folder):
        image = reader.Execute()
    for file, header in headers.items():
        # GDCM may fill up with zeros what a broken file lacks.
        due = image.GetSize()[0] * image.GetSize()[1] * int(header.get(BITS, "16")) // 8
        if header.get(SYNTAX, "").strip("\0 ") in UNPACKED and file.stat().st_size < due:
            raise DataError(f"{file} is truncated: {file.stat().st_size} of {due} bytes and more")
    return image, tuple(headers[files[0]].get(tag, "").strip() for tag in PATIENT)


def _is_odd(file: Path, known: Sequence[Path]) -> bool:
    if file in known or not file.is_file() or file.name.upper() == "DICOMDIR":
        return False
    with regular(file) as stream:
        return stream.read(132)[128:] == b"DICM"


def _header(file: Path) -> dict[str, str]:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(file))
    with _named(file):
        reader.ReadImageInformation()
    return {key: reader.GetMetaData(key) for key in reader.GetMetaDataKeys()}


def _check_headers(folder: Path, headers: Mapping[Path, Mapping[str, str]]) -> None:
    """Refuse what is no MR, lies in other planes, belongs to several patients, or lacks images."""
    first = next(iter(headers.values()))
    if (kind := first.get(MODALITY, "").strip()) not in ("MR", ""):
        raise DataError(f"{folder} is a series of {kind}; MR is needed")
    if int(first.get(FRAMES, "1") or 1) > 1:
        raise DataError(
            f"{folder} holds a multi-frame DICOM file, which is not supported; convert it to "
            "NIfTI, as with dcm2niix"
        )
    if float(first.get(TILT, "0") or 0):
        raise DataError(f"{folder} has a tilted gantry, which is not supported")
    for tags, what in (
        (PATIENT, "of two patients"),
        ((ORIENTATION,), "in several planes, as a localiser"),
        ((ROWS, COLUMNS, PIXELS), "of several sizes"),
    ):
        if len({tuple(h.get(tag, "").strip() for tag in tags) for h in headers.values()}) > 1:
            raise DataError(f"{folder} holds images {what}; keep one series in a folder")
    if (due := int(first.get(ANNOUNCED, "0") or 0)) > len(headers):
        raise DataError(f"{folder} holds {len(headers)} of the {due} images of its series")


def _by_position(folder: Path, headers: Mapping[Path, Mapping[str, str]]) -> list[Path]:
    """Sort slices along their normal; refuse gaps, double ones and a shear."""
    try:
        across = np.array(next(iter(headers.values()))[ORIENTATION].split("\\"), float)
        places = np.array([h[POSITION].split("\\") for h in headers.values()], float)
        normal = np.cross(across[:3], across[3:])
        heights = places @ normal
    except (KeyError, ValueError) as error:
        raise DataError(f"{folder} does not say where its slices lie") from error
    if len(heights) < 2:
        raise DataError(f"{folder} holds one slice; expected a volume of three dimensions")
    order = np.argsort(heights, kind="stable")
    steps = np.diff(heights[order])
    usual = float(np.median(steps))
    if steps.min() < 0.01:
        raise DataError(
            f"{folder} holds several images of one place, as of two echoes or times; keep one each"
        )
    if steps.max() - usual > max(UNEVEN, 0.1 * usual) or usual - steps.min() > max(
        UNEVEN, 0.1 * usual
    ):
        raise DataError(
            f"{folder} is incomplete: slices lie {usual:.1f} mm apart, and {steps.max():.1f} mm "
            "somewhere"
        )
    shear = places - np.outer(heights, normal)
    if np.ptp(shear, axis=0).max() > SHEARED:
        raise DataError(f"{folder} has slices that are sheared (a tilted gantry); not supported")
    files = list(headers)
    return [files[i] for i in order]


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn what ITK says of a broken file into a line; its own words may quote tags."""
    try:
        yield
    except RuntimeError as error:
        said = str(error)
        why = "its axes are not at right angles" if "orthonormal" in said else "is it damaged?"
        raise DataError(f"{path} cannot be read: {why}") from error
