"""The ICBM 152 template on the grid of BraTS: where every patient is brought."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from bts_lightning.data.phantom.anatomy import template_file
from bts_lightning.errors import DataError
from bts_lightning.preprocess.series import read_series

SIZE = (240, 240, 155)
# Where brains of BraTS have their centre of mass, voxels; measured on four cases.
CENTRE = (119.5, 132.0, 78.0)
# Litres; a head with its skull has more.
LARGEST = 2.5
# Voxels around the grid, whose upper edge cuts the scalp.
ROOM = 30
# In which the affine transform sees the brain's border, and how far out and down the first
# registration looks, mm and slices of the grid.
RIM, SEEN, LOWEST = 3, 24.0, 55


class Layer(NamedTuple):
    """What lies around a brain: from where to where, mm, and how bright beside white matter."""

    start: float
    end: float
    share: float


# Fluid and bone, dark; scalp, as bright as white matter: one of its own would fit any ring of air.
LAYERS = (Layer(0, 10, 0.2), Layer(10, 18, 0.9))


def grid() -> sitk.Image:
    """Give an empty image of 1 mm on BraTS's grid: its axes run left, back and up."""
    image = sitk.Image(SIZE, sitk.sitkUInt8)
    # (0, 239, 0) in NIfTI's sense, whose first two axes point the other way than ITK's.
    image.SetOrigin((0.0, -239.0, 0.0))
    return image


@dataclass(frozen=True)
class Atlas:
    """A brain where those of BraTS lie, on a grid with room around it.

    Attributes:
        head: the brain in a skull and a scalp, drawn around it as T1 shows them.
        brain: its mask.
        near: the brain and its rim.
        seen: what all heads share: the brain, and what is around it above face and neck.
    """

    head: sitk.Image
    brain: sitk.Image
    near: sitk.Image
    seen: sitk.Image

    @property
    def shown(self) -> sitk.Image:
        """Give the brain on BraTS's grid."""
        return sitk.Resample(sitk.Mask(self.head, self.brain), grid())


@lru_cache(maxsize=1)
def load(file: Path | None = None) -> Atlas:
    """Take the ICBM's T1, or a stripped T1 of a file."""
    if file is None:
        stripped = sitk.ReadImage(str(template_file("t1")), sitk.sitkFloat32)
    else:
        stripped = read_series(file).image
    closed = sitk.BinaryMorphologicalClosing(stripped > 0, (4, 4, 4), sitk.sitkBox)
    move, room = _move(closed), sitk.ConstantPad(grid(), (ROOM,) * 3, (ROOM,) * 3)
    laid = sitk.Resample(stripped, room, move, sitk.sitkLinear)
    brain = sitk.Resample(closed, room, move, sitk.sitkNearestNeighbor)
    litres = float(sitk.GetArrayViewFromImage(brain).sum() / 1e6)
    if litres > LARGEST:
        raise DataError(
            f"--atlas {file}: {litres:.1f} l are not 0; give a brain without skull, 0 around it"
        )
    beyond = _beyond(brain)
    depth = sitk.GetArrayViewFromImage(beyond)
    values = sitk.GetArrayFromImage(laid)
    bright = float(np.percentile(values[values > 0], 95))
    for layer in LAYERS:
        values[(depth > layer.start) & (depth <= layer.end)] = layer.share * bright
    head = sitk.GetImageFromArray(values)
    head.CopyInformation(laid)
    above = np.arange(len(values)) > LOWEST + ROOM
    seen = sitk.GetImageFromArray(
        ((depth <= SEEN) & (above[:, None, None] | (depth <= 0))).astype(np.uint8)
    )
    seen.CopyInformation(laid)
    return Atlas(head, brain, beyond <= RIM, seen)


def grown(mask: sitk.Image, millimetres: float) -> sitk.Image:
    """Grow a mask to all sides."""
    return _beyond(mask) <= millimetres


def _beyond(mask: sitk.Image) -> sitk.Image:
    """Measure mm from a mask, negative inside."""
    return sitk.SignedMaurerDistanceMap(mask, squaredDistance=False, useImageSpacing=True)


def _move(brain: sitk.Image) -> sitk.TranslationTransform:
    """Lay a brain, without turning it, where those of BraTS have their middle."""
    found = sitk.LabelShapeStatisticsImageFilter()
    found.Execute(brain)
    there = grid().TransformContinuousIndexToPhysicalPoint(CENTRE)
    return sitk.TranslationTransform(
        3, [a - b for a, b in zip(found.GetCentroid(1), there, strict=True)]
    )
