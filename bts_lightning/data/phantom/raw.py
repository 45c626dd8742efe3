"""Heads as a scanner gives them: with skull, moved between the scans, each scan on its own grid."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from bts_lightning.data.phantom.contrast import BRIGHTNESS
from bts_lightning.data.phantom.space import Array, affine
from bts_lightning.modalities import MODALITIES, Modality

# How far a head moves between its place in BraTS's grid and any scan.
MOST_DEGREES, MOST_MM = 20.0, 30.0
THICKNESSES = (1.0, 3.0, 5.0, 5.5)
# Of the scans, mm.
FIELD = 264.0
# Room around the grid of BraTS, whose upper edge cuts the scalp, mm.
MARGIN = 32.0
# Fluid, bone and scalp around the brain, mm, and how bright fat is where fluid of T2 is about 1.
FLUID, BONE, SCALP = 2.0, 6.0, 6.0
FAT = {"t1": 1.05, "t1c": 1.0, "t2": 0.62, "flair": 0.66}


@dataclass(frozen=True)
class RawHead:
    """What was scanned, and how.

    Attributes:
        scans: each on a grid of its own.
        motions: 4×4, from points of the head (that of BraTS's grid, mm as in ITK) to the scan's.
        brain: on BraTS's grid.
    """

    scans: dict[Modality, sitk.Image]
    motions: dict[Modality, NDArray[np.float64]]
    brain: sitk.Image


def scan_raw(
    rng: np.random.Generator, images: dict[Modality, NDArray[np.int16]], size: tuple[int, int, int]
) -> RawHead:
    """Put a skull around a brain, and scan it four times, moved each time."""
    brain = np.logical_or.reduce([image > 0 for image in images.values()])
    voxel = -np.diag(affine(size))[0], -np.diag(affine(size))[1], affine(size)[2, 2]
    pad = [round(MARGIN / edge) for edge in voxel]
    shells = _shells(rng, np.pad(brain, [(n, n) for n in pad], mode="edge"), voxel)
    scans, motions = {}, {}
    for modality in MODALITIES:
        head = _with_skull(rng, modality, np.pad(images[modality], [(n, n) for n in pad]), shells)
        motion = _draw_motion(rng)
        scans[modality] = _scan(rng, _image(head, size, pad), motion, max(voxel))
        motions[modality] = _matrix(motion)
    return RawHead(scans, motions, _image(brain.astype(np.uint8), size, [0] * 3))


def write_raw(folder: Path, head: RawHead, label: NDArray[np.uint8]) -> None:
    """Write a patient's folder: the scans, and in `truth` what nobody knows of a real one."""
    truth = folder / "truth"
    truth.mkdir()
    for modality, scan in head.scans.items():
        sitk.WriteImage(scan, str(folder / f"{modality}.nii.gz"))
    sitk.WriteImage(head.brain, str(truth / "brain.nii.gz"))
    segmented = sitk.GetImageFromArray(np.ascontiguousarray(label.T))
    segmented.CopyInformation(head.brain)
    sitk.WriteImage(segmented, str(truth / "seg.nii.gz"))
    motions = {modality: matrix.tolist() for modality, matrix in head.motions.items()}
    (truth / "motions.json").write_text(json.dumps(motions, indent=1) + "\n", encoding="utf-8")


def _shells(
    rng: np.random.Generator, brain: NDArray[np.bool_], voxel: tuple[float, float, float]
) -> tuple[NDArray[np.bool_], ...]:
    """Give what is brain, fluid, bone and scalp; below the grid they go on as a neck."""
    depth = ndimage.distance_transform_edt(~brain, voxel)
    # Thickness differs from place to place, and from head to head.
    depth *= np.exp(0.2 * _blobs(rng, brain.shape, voxel) + rng.normal(0, 0.1))
    borders = np.cumsum([FLUID, BONE, SCALP])
    return tuple(
        (depth > low) & (depth <= high)
        for low, high in zip((-1, 0, *borders), (0, *borders), strict=False)
    )


def _blobs(
    rng: np.random.Generator, shape: tuple[int, ...], voxel: tuple[float, float, float]
) -> Array:
    """Draw a smooth field of mean 0 and variance about 1, with blobs of 40 mm."""
    coarse = [int(np.ceil(n * edge / 20)) + 3 for n, edge in zip(shape, voxel, strict=True)]
    field = ndimage.gaussian_filter(rng.standard_normal(coarse), 1.0)
    where = np.meshgrid(
        *(np.arange(n) * edge / 20 + 1 for n, edge in zip(shape, voxel, strict=True)), indexing="ij"
    )
    return ndimage.map_coordinates(field / field.std(), where, order=1, output=np.float32)


def _with_skull(
    rng: np.random.Generator,
    modality: Modality,
    image: NDArray[np.int16],
    shells: tuple[NDArray[np.bool_], ...],
) -> Array:
    bright = BRIGHTNESS[modality]
    unit = float(np.median(image[image > 0])) / bright.grey
    inside, fluid, bone, scalp = shells
    head = image.astype(np.float32)
    empty = image == 0
    head[inside & empty] = unit * bright.grey
    head[fluid & empty] = unit * bright.fluid
    head[bone & empty] = unit * 0.08
    head[scalp & empty] = unit * FAT[modality] * rng.uniform(0.8, 1.2)
    noise = 0.02 * unit * rng.standard_normal((2, *head.shape), dtype=np.float32)
    # Magnitudes: noise of both parts of the signal.
    return np.hypot(head + noise[0], noise[1])


def _image(array: NDArray[np.generic], size: tuple[int, int, int], pad: list[int]) -> sitk.Image:
    """Place an array as BraTS does; ITK's first two axes point the other way than NIfTI's."""
    place = affine(size) * np.array([[-1], [-1], [1], [1]])
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing(np.diag(place)[:3].tolist())
    image.SetOrigin((place @ [*(-n for n in pad), 1])[:3].tolist())
    return image


def _draw_motion(rng: np.random.Generator) -> sitk.VersorRigid3DTransform:
    """Turn about any axis through the middle of the head, and shift any way."""
    axis, way = rng.standard_normal((2, 3))
    motion = sitk.VersorRigid3DTransform()
    motion.SetCenter((120.0, -115.0, 75.0))
    motion.SetRotation(
        (axis / np.linalg.norm(axis)).tolist(), float(np.deg2rad(MOST_DEGREES) * rng.uniform())
    )
    motion.SetTranslation((way / np.linalg.norm(way) * MOST_MM * rng.uniform()).tolist())
    return motion


def _matrix(motion: sitk.VersorRigid3DTransform) -> NDArray[np.float64]:
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(motion.GetMatrix(), (3, 3))
    matrix[:3, 3] = motion.TransformPoint((0.0, 0.0, 0.0))
    return matrix


def _scan(
    rng: np.random.Generator, head: sitk.Image, motion: sitk.Transform, voxel: float
) -> sitk.Image:
    """Scan in thick slices, axial, coronal or sagittal; each averages over its thickness."""
    within, thick = max(voxel, rng.uniform(0.85, 1.1)), max(voxel, rng.choice(THICKNESSES))
    parts = max(1, round(thick / within))
    through = int(rng.choice(3, p=(0.15, 0.15, 0.7)))
    spacing = [within] * 3
    spacing[through] = thick / parts
    counts = [round(FIELD / edge) for edge in spacing]
    counts[through] = round(FIELD / thick) * parts
    middle = motion.TransformPoint((120.0, -115.0, 70.0))
    fine = sitk.Image(counts, sitk.sitkUInt8)
    fine.SetSpacing(spacing)
    # The head lies well in the field of view, if not exactly in its middle.
    fine.SetOrigin(
        [
            m - n * s / 2 + rng.uniform(-6, 6)
            for m, n, s in zip(middle, counts, spacing, strict=True)
        ]
    )
    scanned = sitk.Resample(head, fine, motion.GetInverse(), sitk.sitkLinear, 0.0)
    shrink = [1] * 3
    shrink[through] = parts
    return sitk.Cast(sitk.BinShrink(scanned, shrink), sitk.sitkInt16)
