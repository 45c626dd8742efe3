"""A prepared case on disk: two arrays to map, and a JSON that says what they are."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bts_lightning.data.cache.geometry import Geometry
from bts_lightning.modalities import Region, Subset

DESCRIPTION = "case.json"


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
        return self._array("image.npy")

    @property
    def label(self) -> NDArray[np.uint8] | None:
        """Map the label, D×H×W in stored classes, or give None."""
        return self._array("label.npy") if self.is_labelled else None

    @property
    def is_labelled(self) -> bool:
        """Tell whether there is a label without opening it."""
        return self.description["volumes_ml"] is not None

    @property
    def foreground(self) -> NDArray[np.int16]:
        """Map some tumour voxels, rows of class, d, h, w: all of them, or 10,000 a class."""
        return self._array("foreground.npy")

    @cached_property
    def geometry(self) -> Geometry:
        """Tell where the arrays lie on the grid of the files."""
        return Geometry.from_json(self.description["geometry"])

    @property
    def volumes_ml(self) -> dict[Region, float] | None:
        """Give the volume of each region; None without a label."""
        volumes: dict[Region, float] | None = self.description["volumes_ml"]
        return volumes

    @cached_property
    def description(self) -> dict[str, Any]:
        """Read the JSON, once."""
        content: dict[str, Any] = json.loads((self.folder / DESCRIPTION).read_bytes())
        return content

    def _array(self, name: str) -> NDArray[Any]:
        array: NDArray[Any] = np.load(self.folder / name, mmap_mode="r")
        return array
