"""A case that a network can read, in memory; `cache.py` has the same one on disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bts_lightning.data.cache.geometry import Geometry
from bts_lightning.data.cache.normalise import Recipe, UncountableError, normalise
from bts_lightning.data.cache.reading import BrokenCaseError, Volumes, read_volumes
from bts_lightning.data.layouts.case import LABEL_VALUES, Case, Fault, Numbering
from bts_lightning.errors import DataError
from bts_lightning.modalities import BACKGROUND, MODALITIES, SCHEMES, Modality, Scheme, Subset

# The numbers that a prediction is written in where no file of the case has any.
_NUMBERINGS: dict[str, Numbering] = {
    "brats": "brats2023",
    "brats2015": "brats2015",
    "cavity": "brats2024",
    "ped": "ped",
    "men_rt": "men_rt",
}
# At most this many voxels of each class are remembered for patches around the tumour.
FOREGROUND_VOXELS = 10_000


class ReadyCase(Protocol):
    """What training, evaluation and prediction see of a case, from the cache or from memory."""

    @property
    def name(self) -> str: ...
    @property
    def patient(self) -> str: ...
    @property
    def available(self) -> Subset: ...
    @property
    def image(self) -> NDArray[np.float16]: ...
    @property
    def label(self) -> NDArray[np.uint8] | None: ...
    @property
    def geometry(self) -> Geometry: ...


@dataclass(frozen=True)
class MemoryCase:
    """A prepared case in memory.

    Attributes:
        image: 4×D×H×W in modality order, zeros for absent modalities.
        label: D×H×W in stored classes, or None.
        scheme: what they mean.
        label_found: the values that the label's file really holds.
        digests: SHA-256 of each file.
    """

    name: str
    patient: str
    layout: str
    available: Subset
    image: NDArray[np.float16]
    label: NDArray[np.uint8] | None
    geometry: Geometry
    scheme: Scheme
    label_found: tuple[int, ...]
    digests: dict[Path, str]

    @property
    def volumes_ml(self) -> dict[str, float] | None:
        """Measure each region in millilitres; None without a label."""
        if self.label is None:
            return None
        counts = np.bincount(self.label.ravel(), minlength=self.scheme.classes)
        voxel = float(np.prod(self.geometry.spacing)) / 1000
        return {
            region: round(float(sum(counts[c] for c in classes)) * voxel, 6)
            for region, classes in self.scheme.regions.items()
        }

    @property
    def foreground(self) -> NDArray[np.int16]:
        """Give tumour voxels as rows class, d, h, w on the cropped grid, evenly from each class."""
        if self.label is None:
            return np.zeros((0, 4), dtype=np.int16)
        rows = [np.zeros((0, 4), dtype=np.int16)]
        for stored in range(BACKGROUND + 1, self.scheme.classes):
            found = np.flatnonzero(self.label == stored)
            if found.size > FOREGROUND_VOXELS:
                found = found[np.arange(FOREGROUND_VOXELS) * found.size // FOREGROUND_VOXELS]
            where = np.stack(np.unravel_index(found, self.label.shape), axis=1)
            rows.append(np.insert(where, 0, stored, axis=1).astype(np.int16))
        return np.concatenate(rows)


def load_case(case: Case, recipe: Recipe | None = None) -> MemoryCase:
    """Read, check and normalise a case.

    Raises:
        BrokenCaseError: when any of its files cannot be used.
    """
    (ready,) = load_cases(case, [recipe or Recipe()])
    return ready


def load_cases(case: Case, recipes: Sequence[Recipe]) -> list[MemoryCase]:
    """Read and check a case once, and normalise it by recipes of one scheme."""
    volumes = read_volumes(case, recipes[0].scheme)
    ready = {recipe: _normalised(case, volumes, recipe) for recipe in dict.fromkeys(recipes)}
    return [ready[recipe] for recipe in recipes]


def _normalised(case: Case, volumes: Volumes, recipe: Recipe) -> MemoryCase:
    try:
        image, box = normalise(volumes, recipe)
    except UncountableError as error:
        reason = "its values are too large, or too close together, for a mean and a deviation"
        raise BrokenCaseError([Fault(case.name, case.images[error.modality], reason)]) from error
    d, h, w = next(iter(volumes.images.values())).shape
    geometry = Geometry(
        affine=tuple(tuple(row) for row in volumes.affine.tolist()),
        shape=(d, h, w),
        box=box,
        label_values=case.stored_values(recipe.scheme),
    )
    label = volumes.label
    if label is not None:
        label = np.ascontiguousarray(label[geometry.slices])
    return MemoryCase(
        name=case.name,
        patient=case.patient,
        layout=case.layout,
        available=case.available,
        image=image,
        label=label,
        geometry=geometry,
        scheme=SCHEMES[recipe.scheme],
        label_found=volumes.label_found,
        digests=volumes.digests,
    )


def case_of(images: Mapping[Modality, Path], *, name: str = "case", scheme: str = "brats") -> Case:
    """Make a case of the images of one patient that belong to no data set, for `bts predict`."""
    if not images:
        raise DataError(f"no image is given; name one or more of {', '.join(MODALITIES)}")
    return Case(
        name=name,
        patient=name,
        layout="images",
        images={modality: Path(images[modality]) for modality in MODALITIES if modality in images},
        label=None,
        label_values=LABEL_VALUES[_NUMBERINGS[scheme]],
    )
