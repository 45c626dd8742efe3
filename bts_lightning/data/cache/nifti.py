"""Read NIfTI files so that nothing broken passes, write them so that nothing is half-written."""

import gzip
import hashlib
import logging
import math
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bts_lightning.files import regular, write_whole

# Bytes that hold either version's header.
HEADER = 544
# A file announces no more than this: four channels of a head at 0.5 mm in float32 are 1.5 GB.
LARGEST = 2**31
# Bytes that may follow the voxels; some programs fill up blocks.
PADDING = 2**20
# The header is unpacked from these bytes, whatever stands in front of it.
_BEGIN = 2**16
# Deflate packs no better.
_PACKS = 1032
# Millimetres; more is no place in a scanner, and its square may be no number.
_FAR = 1e9
# What nibabel mends in a header it tells nobody: a data set has thousands.
_SILENT = logging.Logger("nibabel", level=logging.CRITICAL + 1)


class UnreadableError(Exception):
    """A file is no usable image; the text is the reason alone, for a table of faults."""


@dataclass(frozen=True)
class Nifti:
    """A volume in the axis order of its file, its affine, and the SHA-256 of the file's bytes."""

    array: NDArray[Any]
    affine: NDArray[np.float64]
    digest: str


class _Header(NamedTuple):
    """What a header announces; `end` counts the bytes up to the last voxel."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    end: int
    scale: tuple[float | None, float | None]
    affine: NDArray[np.float64]


class _Opened(NamedTuple):
    """An open file, its size, whether it is packed, and what its unpacked content begins with."""

    file: BufferedReader
    size: int
    packed: bool
    start: bytes

    @property
    def header(self) -> _Header:
        return _header(self.start, self.size * (_PACKS if self.packed else 1))


def read_nifti(path: Path) -> Nifti:
    """Read a whole file, compressed or not whatever its name says, checked to the last byte.

    The header comes first, and no more is unpacked than it announces.
    """
    with _opened(path) as opened:
        file, header = opened.file, opened.header
        too_long = UnreadableError(f"goes on behind the {header.end} bytes that it announces")
        # What cannot be packed grows by less than this; the rest would be parts without content.
        if opened.size > header.end + header.end // 100 + PADDING:
            raise too_long
        stream = gzip.GzipFile(fileobj=file) if opened.packed else file
        content = stream.read(header.end)
        # The end of compressed data checks their sum.
        if len(stream.read(PADDING + 1)) > PADDING:
            raise too_long
        if len(content) < header.end:
            raise UnreadableError(f"truncated: {len(content)} of {header.end} bytes")
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Nifti(_voxels(content, header), header.affine, digest)


def count_voxels(path: Path) -> int:
    """Count the voxels that a file's header promises; 0 when it cannot be read."""
    try:
        with _opened(path) as opened:
            return math.prod(opened.header.shape[:3])
    except UnreadableError:
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


@contextmanager
def _opened(path: Path) -> Iterator[_Opened]:
    """Open a file, packed or not."""
    try:
        with regular(path) as file:
            size, start = os.fstat(file.fileno()).st_size, file.read(_BEGIN)
            file.seek(0)
            packed = start[:2] == b"\x1f\x8b"
            if packed:
                start = zlib.decompressobj(31).decompress(start, HEADER)
            yield _Opened(file, size, packed, start)
    except EOFError as error:
        raise UnreadableError("truncated: the compressed data end too early") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UnreadableError(f"damaged: {error}") from error
    except OSError as error:
        raise UnreadableError(f"cannot be opened: {error.strerror}") from error


def _header(start: bytes, most: int) -> _Header:
    """Read what a file begins with, and refuse more voxels than it can hold."""
    if not start:
        raise UnreadableError("the file is empty")
    # The size of the header is the format's mark, in either byte order.
    sizes = {int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")}
    kinds: dict[int, Any] = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
    length = next((size for size in kinds if size in sizes), None)
    if length is None or len(start) < length:
        raise UnreadableError("not a NIfTI image")
    try:
        header = kinds[length](start[:length], check=False)
        header.check_fix(logger=_SILENT)
        count, *lengths = header["dim"].tolist()
        shape = tuple(lengths[:count])
        dtype, offset = header.get_data_dtype(), int(header.get_data_offset())
        scale = header.get_slope_inter()
        with np.errstate(all="ignore"):
            affine = np.asarray(header.get_best_affine(), dtype=np.float64)
            volume = abs(np.linalg.det(affine[:3, :3]))
    except Exception as error:
        # Of a field that makes no sense nibabel says so, or fails as Python and NumPy happen to.
        raise UnreadableError(f"not a NIfTI image: {error}") from error
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    end = offset + math.prod(shape) * dtype.itemsize
    if not 0 < count < 8 or min(shape) < 1 or offset < length:
        raise UnreadableError(f"not a NIfTI image: shape {shape} from byte {offset} on")
    if dtype.kind not in "uif":
        raise UnreadableError(f"holds {dtype} voxels; expected one number each")
    if not abs(affine).max() < _FAR or not volume >= 1e-9:
        raise UnreadableError("its affine cannot be inverted")
    if end > most:
        raise UnreadableError(f"truncated: at most {most} of {end} bytes")
    if end > LARGEST:
        raise UnreadableError(f"announces {end} bytes; more than {LARGEST} are not read")
    return _Header(shape, dtype, offset, end, scale, affine)


def _voxels(content: bytes, header: _Header) -> NDArray[Any]:
    count = math.prod(header.shape)
    array = np.frombuffer(content, header.dtype, count, header.offset)
    array = array.reshape(header.shape, order="F")
    array = array.astype(header.dtype.newbyteorder("="), copy=False)
    slope, intercept = header.scale
    if slope is None or intercept is None or (slope, intercept) == (1, 0):
        return array
    with np.errstate(all="ignore"):
        return array.astype(np.float64) * slope + intercept
