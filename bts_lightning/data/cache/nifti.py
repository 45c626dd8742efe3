"""Read NIfTI files so that nothing broken passes, write them so that nothing is half-written."""

import gzip
import hashlib
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from bts_lightning.files import write_whole

# Bytes that hold either version's header.
HEADER = 544


class UnreadableError(Exception):
    """A file is no usable image; the text is the reason alone, for a table of faults."""


@dataclass(frozen=True)
class Nifti:
    """A volume in the axis order of its file, its affine, and the SHA-256 of the file's bytes."""

    array: NDArray[Any]
    affine: NDArray[np.float64]
    digest: str


def read_nifti(path: Path) -> Nifti:
    """Read a whole file, compressed or not whatever its name says, checked to the last byte."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UnreadableError(f"cannot be opened: {error.strerror}") from error
    content = _unpacked(raw)
    header = _header(content)
    shape = tuple(int(length) for length in header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if header.get_data_dtype().kind not in "uif":
        raise UnreadableError(f"holds {header.get_data_dtype()} voxels; expected one number each")
    affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise UnreadableError("its affine cannot be inverted")
    return Nifti(_voxels(content, header, shape), affine, hashlib.sha256(raw).hexdigest())


def count_voxels(path: Path) -> int:
    """Count the voxels that a file's header promises; 0 when it cannot be read."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            start = gzip.GzipFile(fileobj=file).read(HEADER) if packed else file.read(HEADER)
        return int(np.prod(_header(start).get_data_shape()[:3]))
    except (OSError, EOFError, zlib.error, UnreadableError):
        return 0


def write_nifti(array: NDArray[Any], affine: NDArray[np.float64], out: Path) -> None:
    """Write a file that appears whole or not at all, compressed when the name ends in .gz."""
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    # Viewers disagree on which of the two to believe, so both say the same.
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    content = image.to_bytes()
    if out.suffix == ".gz":
        # No time stamp: the same prediction gives the same bytes.
        content = gzip.compress(content, compresslevel=4, mtime=0)
    write_whole(out, content)


def _unpacked(raw: bytes) -> bytes:
    if not raw:
        raise UnreadableError("the file is empty")
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        return gzip.decompress(raw)
    except EOFError as error:
        raise UnreadableError("truncated: the compressed data end too early") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UnreadableError(f"damaged: {error}") from error


def _header(content: bytes) -> Any:
    # The size of the header is the format's mark, in either byte order.
    sizes = {int.from_bytes(content[:4], "little"), int.from_bytes(content[:4], "big")}
    kinds = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
    kind = next((kinds[size] for size in kinds if size in sizes), None)
    if kind is None or len(content) < min(sizes):
        raise UnreadableError("not a NIfTI image")
    try:
        return kind.from_fileobj(BytesIO(content))
    except (HeaderDataError, nib.wrapstruct.WrapStructError, ValueError) as error:
        raise UnreadableError(f"not a NIfTI image: {error}") from error


def _voxels(content: bytes, header: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    dtype: np.dtype[Any] = header.get_data_dtype()
    offset = int(header.get_data_offset())
    expected = offset + int(np.prod(shape)) * dtype.itemsize
    if len(content) < expected:
        raise UnreadableError(f"truncated: {len(content)} of {expected} bytes")
    count = int(np.prod(shape))
    array = np.frombuffer(content, dtype, count, offset).reshape(shape, order="F")
    array = array.astype(dtype.newbyteorder("="), copy=False)
    slope, intercept = header.get_slope_inter()
    if (slope, intercept) in ((None, None), (1.0, 0.0)):
        return array
    return (array * np.float64(slope) + np.float64(intercept)).astype(np.float32)
