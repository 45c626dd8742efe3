"""A healthy head for each subject: the ICBM 152 tissue maps, deformed and made individual."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bts_lightning.data.phantom.space import (
    Array,
    Box,
    Grid,
    box_on,
    control_grid,
    interpolate,
    smooth_noise,
)
from bts_lightning.errors import DataError

# Control points of the deformation, mm: half of the finest displacement drawn below.
STEP = 3.0
# The part of the ICBM maps that holds the brain, with a margin for its fluid.
BRAIN = (slice(20, 177), slice(20, 215), slice(0, 165))
# Where voxel (0, 0, 0) of the full-size grid lies in the cropped maps, and the sense of each axis:
# BraTS arrays run to the left and back, ICBM arrays to the right and front. Puts the vertex some
# 10 mm below the upper edge, and lets the lower one cut the brain stem as in BraTS.
ATLAS_ORIGIN = (198.0, 224.0, 9.0)
ATLAS_SENSE = (-1.0, -1.0, 1.0)
# Middle of the brain in the full-size grid, around which heads are turned and scaled.
MIDDLE = (120.0, 124.0, 75.0)
# A voxel of the lateral ventricles in the cropped maps.
IN_VENTRICLE = (57, 76, 89)


@dataclass(frozen=True)
class Atlas:
    """Tissue fractions in 0…1 and the distance in mm to the ventricles (negative inside)."""

    grey: Array
    white: Array
    brain: Array
    ventricles: Array


@dataclass(frozen=True)
class Tissues:
    """A subject's brain in a box of the grid: tissue fractions that add up to one inside the mask.

    Attributes:
        box: where the arrays lie in the whole grid.
        inside: the skull-stripped brain with its fluid.
        ventricles: mm to the ventricles.
        midline: mm to the plane between the hemispheres.
        shell: mm below the surface of the brain, up to some 15.
    """

    box: Box
    inside: NDArray[np.bool_]
    fluid: Array
    grey: Array
    white: Array
    ventricles: Array
    midline: Array
    shell: Array


@lru_cache(maxsize=1)
def load_atlas() -> Atlas:
    """Read the maps that nilearn ships and find the brain and its ventricles."""
    grey, white, head = (_read_map(name)[BRAIN] for name in ("gm", "wm", "t1"))
    # Fluid around the brain survives skull stripping; the template's mask ends at the cortex.
    brain = ndimage.binary_closing(np.pad(head > 0, 6), iterations=5)[6:-6, 6:-6, 6:-6]
    brain[:, :, 0] = head[:, :, 0] > 0  # closing treats the lower cut as outside
    fluid = brain & (grey + white < 0.5)
    deep = ndimage.binary_erosion(brain, iterations=12)
    labels, _ = ndimage.label(fluid & deep)
    ventricles = labels == labels[IN_VENTRICLE]
    # Half the resolution is enough for a smooth distance, at an eighth of the time.
    coarse = ventricles[::2, ::2, ::2]
    distance = ndimage.distance_transform_edt(~coarse, 2.0) - ndimage.distance_transform_edt(
        coarse, 2.0
    )
    return Atlas(
        grey=grey,
        white=white,
        brain=ndimage.gaussian_filter(brain.astype(np.float32), 2.0),
        ventricles=distance.astype(np.float32),
    )


@lru_cache(maxsize=2)
def blurred_atlas(voxel: tuple[float, float, float]) -> Atlas:
    """Average the tissue maps over larger voxels, so that sampling them does not alias."""
    atlas = load_atlas()
    blur = [0.4 * float(np.sqrt(max(edge**2 - 1, 0.0))) for edge in voxel]
    grey, white = (ndimage.gaussian_filter(part, blur) for part in (atlas.grey, atlas.white))
    return replace(atlas, grey=grey, white=white)


def draw_warp(rng: np.random.Generator, atlas: Atlas) -> Array:
    """Draw where each control point of a new subject's head lies in the atlas, 3×X×Y×Z voxels."""
    grid = control_grid(STEP)
    head = grid.mesh() - _column(MIDDLE)
    # BraTS is registered to one template, which leaves differences of size and a few degrees.
    scale = 1 / (0.985 + 0.035 * rng.standard_normal(3).clip(-2, 2))
    turn = _rotation(np.deg2rad(2.5) * rng.standard_normal(3).clip(-2, 2))
    head = np.einsum("ij,jxyz->ixyz", (np.diag(scale) @ turn).astype(np.float32), head)
    # Amplitude in mm at a scale in mm: lobes, gyri, and the finest folds.
    for size, amplitude in ((45.0, 2.4), (20.0, 1.2), (9.0, 0.8)):
        head += np.float32(amplitude) * np.stack([smooth_noise(rng, grid, size) for _ in range(3)])
    head += _column(MIDDLE) + _column(rng.normal(0, 1.5, 3))
    warp = _column(ATLAS_ORIGIN) + _column(ATLAS_SENSE) * head

    # Ventricles widen with age by up to 4 mm: tissue around them comes from nearer to them.
    widening = 4.5 * float(rng.uniform()) ** 1.5 - 0.7
    reach = widening * np.exp(-np.maximum(_from_ventricles(atlas.ventricles, warp), 0) / 12)
    slopes = [np.gradient(atlas.ventricles, 2.0, axis=axis) for axis in range(3)]
    return warp - reach * np.stack([_from_ventricles(slope, warp) for slope in slopes])


def sample(
    atlas_map: Array, where: Array, outside: Literal["constant", "nearest"] = "constant"
) -> Array:
    """Read a map at places given in its voxels; outside it is zero or goes on."""
    return ndimage.map_coordinates(atlas_map, where, order=1, mode=outside, output=np.float32)


def move(warp: Array, displacement: Array) -> Array:
    """Read the warp `displacement` mm away from each point, as tissue that was pushed there."""
    grid = control_grid(STEP)
    where = (grid.mesh() + displacement) / STEP + 2
    return np.stack([sample(part, where, "nearest") for part in warp])


def make_tissues(rng: np.random.Generator, warp: Array, atlas: Atlas, grid: Grid) -> Tissues:
    """Bring the atlas to the subject, and give the subject folds and sulci of its own."""
    box = box_on(grid, sample(atlas.brain, warp) > 0.2, STEP)
    grid = grid.crop(box)
    where = np.stack([interpolate(part, STEP, grid) for part in warp])
    # Skull stripping leaves between none and two millimetres of the fluid outside.
    surface = sample(atlas.brain, where) + np.float32(0.1) * smooth_noise(rng, grid, 12.0)
    inside = surface > 0.5
    labels, count = ndimage.label(inside)
    if count > 1:
        inside = labels == np.argmax(np.bincount(labels.ravel())[1:]) + 1

    where_inside = where[:, inside]
    grey, white = (sample(part, where_inside) for part in (atlas.grey, atlas.white))
    fluid = np.maximum(1 - grey - white, 0)
    # The atlas is an average of 152 brains, so its sulci are shallow. Each subject sharpens the
    # fractions and moves their borders by a field of its own.
    atrophy = rng.uniform(1.0, 2.4)
    for part, gain, wobble in ((fluid, atrophy, 0.45), (grey, 1.0, 0.2), (white, 1.1, 0.2)):
        np.power(part, np.float32(1.6), out=part)
        part *= np.float32(gain) * np.exp(np.float32(wobble) * smooth_noise(rng, grid, 5.0)[inside])
    whole = fluid + grey + white + np.float32(1e-6)

    def placed(values: Array) -> Array:
        x = np.zeros(grid.shape, np.float32)
        x[inside] = values
        return x

    fluid, grey, white = (placed(part / whole) for part in (fluid, grey, white))
    fluid[inside] = 1 - grey[inside] - white[inside]
    control = control_grid(STEP)
    depth = _depth(sample(atlas.brain, warp) > 0.5, control)
    return Tissues(
        box=box,
        inside=inside,
        fluid=fluid,
        grey=grey,
        white=white,
        ventricles=interpolate(_from_ventricles(atlas.ventricles, warp), STEP, grid),
        midline=np.abs(where[0] - np.float32(98 - BRAIN[0].start)),
        shell=interpolate(depth, STEP, grid),
    )


def template_file(name: str) -> Path:
    """Find a map of the ICBM 152 template that nilearn ships: `gm`, `wm`, or a stripped `t1`."""
    spec = importlib.util.find_spec("nilearn")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            "the phantom is made of tissue maps that the package nilearn ships, and nilearn is not "
            "installed; install it with: pip install nilearn"
        )
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    path = folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
    if not path.is_file():
        raise DataError(
            f"{path} is missing: this version of nilearn does not ship the ICBM 152 maps that the "
            "phantom is made of; install nilearn 0.14"
        )
    return path


def _read_map(name: str) -> Array:
    values = np.asarray(nib.Nifti1Image.from_filename(template_file(name)).dataobj, np.float32)
    return values / np.float32(255)


def _column(values: Sequence[float] | NDArray[np.float64]) -> Array:
    return np.asarray(values, np.float32).reshape(3, 1, 1, 1)


def _rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        one, other = (i for i in range(3) if i != axis)
        step = np.eye(3)
        step[one, one] = step[other, other] = np.cos(angle)
        step[one, other], step[other, one] = -np.sin(angle), np.sin(angle)
        turn = step @ turn
    return turn


def _from_ventricles(distance: Array, warp: Array) -> Array:
    """Read the map of half the resolution."""
    return sample(distance, warp / np.float32(2), "nearest")


def _depth(brain: NDArray[np.bool_], control: Grid) -> Array:
    """Measure mm to the surface, where the cut at the lower edge of the volume is no surface."""
    padded = np.pad(brain, ((0, 0), (0, 0), (8, 0)), mode="edge")
    depth = ndimage.distance_transform_edt(padded)[:, :, 8:] * STEP
    assert depth.shape == control.shape
    return np.minimum(depth, 15.0).astype(np.float32)
