"""A prepared case on disk: arrays to map, and a JSON that says what they are."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from bts_lightning.data.cache.geometry import Geometry
from bts_lightning.errors import DataError
from bts_lightning.files import content, regular
from bts_lightning.modalities import MODALITIES, Subset

DESCRIPTION = "case.json"
# The last key of a description: the SHA-256 of all that stands before it.
_SEAL = b' "seal": '


@dataclass(frozen=True)
class CachedCase:
    """A case that `prepare` left in a folder; its arrays are read only where they are touched.

    >>> case = prepare("data")[0]  # doctest: +SKIP
    >>> patch = np.array(case.image[:, :128, :128, :128])  # doctest: +SKIP
    """

    folder: Path

    @property
    def name(self) -> str:
        """Give the case's name, as its files spell it."""
        return str(self.description["name"])

    @property
    def patient(self) -> str:
        """Give the patient, who may have several cases."""
        return str(self.description["patient"])

    @property
    def layout(self) -> str:
        """Name the data set that the files came from."""
        return str(self.description["layout"])

    @property
    def available(self) -> Subset:
        """Tell which modalities were acquired."""
        t1, t1c, t2, flair = self.description["available"]
        return t1, t1c, t2, flair

    @property
    def image(self) -> NDArray[np.float16]:
        """Map the image, 4×D×H×W; each access opens the file, so hold it while you need it.

        An open map holds a file handle, and a data set has more cases than a process may have.
        """
        return self._array("image.npy", np.float16, (len(MODALITIES), *self.geometry.size))

    @property
    def label(self) -> NDArray[np.uint8] | None:
        """Map the label, D×H×W in stored classes, or give None."""
        if not self.is_labelled:
            return None
        return self._array("label.npy", np.uint8, self.geometry.size)

    @property
    def is_labelled(self) -> bool:
        """Tell whether there is a label without opening it."""
        return self.description["volumes_ml"] is not None

    @property
    def foreground(self) -> NDArray[np.int16]:
        """Map some tumour voxels, rows of class, d, h, w: all of them, or 10,000 a class."""
        return self._array("foreground.npy", np.int16, (None, 4))

    @cached_property
    def geometry(self) -> Geometry:
        """Tell where the arrays lie on the grid of the files."""
        return Geometry.from_json(self.description["geometry"])

    @property
    def origin(self) -> tuple[int, int, int]:
        """Give the voxel of the files' grid where the arrays begin."""
        return self.geometry.origin

    @property
    def volumes_ml(self) -> dict[str, float] | None:
        """Give the volume of each region; None without a label."""
        volumes: dict[str, float] | None = self.description["volumes_ml"]
        return volumes

    @cached_property
    def description(self) -> dict[str, Any]:
        """Read the JSON, once, and refuse one that has changed since it was written."""
        try:
            return unsealed(content(self.folder / DESCRIPTION))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.folder / DESCRIPTION} describes no cached case ({error}); prepare again"
            ) from error

    def _array(self, name: str, dtype: DTypeLike, shape: tuple[int | None, ...]) -> NDArray[Any]:
        file = self.folder / name
        try:
            regular(file).close()
            array: NDArray[Any] = np.lib.format.open_memmap(file, mode="r")
        except Exception as error:
            # What NumPy raises at a damaged header is whatever Python raises.
            raise DataError(
                f"{file} cannot be read as a cached array ({error}); prepare again"
            ) from error
        fits = all(n in (m, None) for n, m in zip(shape, array.shape, strict=False))
        if array.dtype != dtype or array.ndim != len(shape) or not fits:
            raise DataError(
                f"{file} holds {array.dtype} of shape {array.shape}, which is not what "
                f"{DESCRIPTION} beside it says; prepare again"
            )
        return array


def sealed(description: dict[str, Any]) -> bytes:
    """Write a description with its checksum at the end."""
    text = json.dumps(description, indent=1).removesuffix("\n}").encode() + b",\n"
    return text + _SEAL + _end(text)


def unsealed(written: bytes) -> dict[str, Any]:
    """Read what `sealed` wrote.

    Raises:
        ValueError: when one bit of it is another.
    """
    text, _, end = written.rpartition(_SEAL)
    if end != _end(text):
        raise ValueError("its checksum is another one")
    description: dict[str, Any] = json.loads(written)
    return description


def _end(text: bytes) -> bytes:
    return f'"{hashlib.sha256(text).hexdigest()}"\n}}\n'.encode()
