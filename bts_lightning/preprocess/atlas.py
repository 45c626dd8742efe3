"""The ICBM 152 template on the grid of BraTS: where every patient is brought."""

import math
from functools import lru_cache
from pathlib import Path

import SimpleITK as sitk

from bts_lightning.data.phantom.anatomy import template_file
from bts_lightning.errors import DataError
from bts_lightning.preprocess.series import read_series

SIZE = (240, 240, 155)
# Where brains of BraTS have their centre of mass, voxels; measured on four cases.
CENTRE = (119.5, 132.0, 78.0)
# Litres; a head with its skull has more.
LARGEST = 2.5


def grid() -> sitk.Image:
    """Give an empty image of 1 mm on BraTS's grid: its axes run left, back and up."""
    image = sitk.Image(SIZE, sitk.sitkUInt8)
    # (0, 239, 0) in NIfTI's sense, whose first two axes point the other way than ITK's.
    image.SetOrigin((0.0, -239.0, 0.0))
    return image


@lru_cache(maxsize=1)
def load(file: Path | None = None) -> tuple[sitk.Image, sitk.Image]:
    """Give a stripped brain and its mask on BraTS's grid: the ICBM's T1, or that of a file."""
    brain = sitk.ReadImage(str(template_file("t1")), sitk.sitkFloat32)
    if file is not None:
        brain = read_series(file).image
    laid = _laid(brain)
    mask = sitk.BinaryMorphologicalClosing(laid > 0, (4, 4, 4))
    litres = float(sitk.GetArrayViewFromImage(mask).mean() * math.prod(SIZE) / 1e6)
    if not litres <= LARGEST:
        raise DataError(
            f"--atlas {file}: {litres:.1f} l are not 0; give a brain without skull, 0 around it"
        )
    return laid, mask


def grown(mask: sitk.Image, millimetres: int) -> sitk.Image:
    """Grow a mask on a grid of 1 mm."""
    return sitk.BinaryDilate(mask, (millimetres,) * 3)


def _laid(brain: sitk.Image) -> sitk.Image:
    """Move a brain, without turning it, so that its middle lies where those of BraTS do."""
    found = sitk.LabelShapeStatisticsImageFilter()
    found.Execute(brain > 0)
    here = found.GetCentroid(1)
    there = grid().TransformContinuousIndexToPhysicalPoint(CENTRE)
    move = sitk.TranslationTransform(3, [a - b for a, b in zip(here, there, strict=True)])
    return sitk.Resample(brain, grid(), move, sitk.sitkLinear)
