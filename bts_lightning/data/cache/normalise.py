"""From the voxels of the files to what a network reads: the brain's box, z-scores in float16."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes

from bts_lightning.data.cache.geometry import Box, box_around, grown
from bts_lightning.data.cache.reading import Volumes
from bts_lightning.errors import ConfigError, did_you_mean
from bts_lightning.modalities import MODALITIES, SCHEMES, Modality

Normalisation = Literal["zscore", "legacy_rfnet", "legacy_nnunet", "minmax", "percentiles"]
Crop = Literal["brain", "none"]

# RFNet, mmFormer, M2FTrans and IM-Fuse grow the box to this, so that a 128³ patch always fits.
LEGACY_LEAST = 128
# |z| of n values cannot exceed √n, about 3,000 for a head, so only `legacy_rfnet`, which scales
# voxels that its statistics never saw, can meet this limit of float16.
LARGEST = 65504.0


@dataclass(frozen=True)
class Recipe:
    """How a case is prepared; a part of the cache's key.

    Attributes:
        normalisation: `zscore`: mean and deviation of a modality over its own brain; background 0.
            `legacy_rfnet`: over the joint brain of all modalities and applied to the background
            too, as that family of repositories does. `legacy_nnunet`: over the joint brain with its
            holes filled; background 0, as nnU-Net and A2FSeg do. In both, statistics leak between
            modalities. `minmax`: a modality's whole volume to 0…1, as GMD, ACN and the second
            version of M2FTrans do. `percentiles`: likewise from the 1st to the 99th percentile of
            what is above 0, and beyond them 0 and 1, as M3AE does.
        crop: `brain`: the box where any acquired modality is not 0. A modality dropped later has
            had its part in where the box lies, never in a value. `none`: the whole grid, when
            not even that may be.
        scheme: what its label tells apart, see `modalities.SCHEMES`.
        version: counts up when the same files would be prepared differently.
    """

    normalisation: Normalisation = "zscore"
    crop: Crop = "brain"
    scheme: str = "brats"
    version: int = 2

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise ConfigError(f"scheme is {self.scheme!r}; {did_you_mean(self.scheme, SCHEMES)}")

    @property
    def name(self) -> str:
        """Name the folder of the cache."""
        uncropped = "" if self.crop == "brain" else "-uncropped"
        scheme = "" if self.scheme == "brats" else f"-{self.scheme}"
        return f"{self.normalisation}{uncropped}{scheme}"

    def to_json(self) -> dict[str, Any]:
        """Say it as a case of the cache does; one from before there were schemes is still good."""
        return {k: v for k, v in asdict(self).items() if (k, v) != ("scheme", "brats")}


class UncountableError(Exception):
    """A modality has no mean and deviation in float64."""

    def __init__(self, modality: Modality) -> None:
        super().__init__(modality)
        self.modality = modality


def normalise(volumes: Volumes, recipe: Recipe) -> tuple[NDArray[np.float16], Box]:
    """Give the image, 4×D×H×W with zeros for absent modalities, and the box it was cut from.

    Raises:
        UncountableError: where the values are too large or too small to compute with.
    """
    brains = {modality: image != 0 for modality, image in volumes.images.items()}
    joint = np.logical_or.reduce(list(brains.values()))
    box = _box(joint, volumes, recipe)
    shared = binary_fill_holes(joint) if recipe.normalisation == "legacy_nnunet" else joint
    slices = tuple(slice(low, high) for low, high in box)
    image = np.zeros((len(MODALITIES), *(high - low for low, high in box)), dtype=np.float16)
    for channel, modality in enumerate(MODALITIES):
        if modality not in volumes.images:
            continue
        voxels = volumes.images[modality]
        inside = brains[modality] if recipe.normalisation == "zscore" else shared
        with np.errstate(all="ignore"):
            if recipe.normalisation == "minmax":
                mean, deviation = float(voxels.min()), float(np.ptp(voxels.astype(np.float64)))
            elif recipe.normalisation == "percentiles":
                mean, deviation = _percentiles(voxels)
            else:
                mean, deviation = _statistics(voxels, inside)
        if not (np.isfinite(mean) and 0 < deviation < np.inf):
            raise UncountableError(modality)
        # A small contrast on a large offset needs digits that float32 has not; no scan does.
        plain = abs(mean) < 1000 * deviation and 1e-30 < deviation < 1e30
        number: Any = np.float32 if plain else np.float64
        scaled = (voxels[slices].astype(number) - number(mean)) / number(deviation)
        if recipe.normalisation in ("zscore", "legacy_nnunet"):
            scaled[~inside[slices]] = 0
        if recipe.normalisation == "percentiles":
            scaled = scaled.clip(0, 1)
        image[channel] = scaled.clip(-LARGEST, LARGEST)
    return image, box


def _box(joint: NDArray[np.bool_], volumes: Volumes, recipe: Recipe) -> Box:
    d, h, w = joint.shape
    if recipe.crop == "none":
        return (0, d), (0, h), (0, w)
    # No voxel of the truth may be cut off: a score would not see it.
    box = box_around(joint if volumes.label is None else joint | (volumes.label != 0))
    return grown(box, (d, h, w), LEGACY_LEAST) if recipe.normalisation == "legacy_rfnet" else box


def _percentiles(voxels: NDArray[Any]) -> tuple[float, float]:
    """Give the 1st percentile of what is above 0, and how far above it the 99th is."""
    above = voxels[voxels > 0].astype(np.float64)
    low, high = np.percentile(above, (1, 99)).tolist() if above.size else (0.0, 0.0)
    return low, high - low


def _statistics(voxels: NDArray[Any], inside: NDArray[np.bool_]) -> tuple[float, float]:
    # Transposed: files run along the first axis, boolean selection along the last.
    values = voxels.T[inside.T].astype(np.float64)
    return float(values.mean()), float(values.std())
