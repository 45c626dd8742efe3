"""Cases and label maps for machines that have no data set, and predictions that err plausibly."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bts_lightning.errors import UserError
from bts_lightning.modalities import COMPLETE, SUBSETS, Subset

# The brain of a BraTS case fills about this box of 240×240×155.
BRAIN = (150, 180, 135)
FULL = (240, 240, 155)


def read_grid(text: str) -> tuple[int, int, int]:
    """Read an option like `240x240x155`."""
    lengths = [int(word) for word in text.split("x") if word.isdecimal()]
    if len(lengths) != 3 or text.count("x") != 2 or min(lengths) < 1:
        raise UserError(f"--size is {text}; give three lengths, as 240x240x155")
    z, y, x = lengths
    return z, y, x


@dataclass(frozen=True)
class SyntheticCase:
    """A case on disk with the attributes that loaders read."""

    folder: Path
    available: Subset = COMPLETE
    origin: tuple[int, int, int] = (0, 0, 0)

    @property
    def name(self) -> str:
        """Give the name of its folder."""
        return self.folder.name

    @property
    def image(self) -> NDArray[np.float16]:
        """Map the image."""
        return self._array("image")

    @property
    def label(self) -> NDArray[np.uint8]:
        """Map the label."""
        return self._array("label")

    @cached_property
    def foreground(self) -> NDArray[Any]:
        """Give tumour voxels as rows of class, d, h, w."""
        places = np.argwhere(np.asarray(self.label) > 0)
        classes = np.asarray(self.label)[tuple(places.T)]
        order = np.argsort(classes, kind="stable")
        return np.column_stack([classes, places])[order].astype(np.int16)

    def _array(self, name: str) -> NDArray[Any]:
        array: NDArray[Any] = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        return array


def write_cases(home: Path, count: int, size: tuple[int, int, int] = BRAIN) -> list[SyntheticCase]:
    """Write brain-cropped cases as the cache has them; those that are there stay."""
    cases = []
    for number in range(count):
        folder = home / f"synthetic_{number:03d}_{'x'.join(map(str, size))}"
        if not (folder / "label.npy").exists():
            folder.mkdir(parents=True, exist_ok=True)
            image, label = make_case(size, seed=number)
            np.save(folder / "image.npy", image)
            np.save(folder / "label.npy", label)
        cases.append(SyntheticCase(folder))
    return cases


def make_case(
    size: tuple[int, int, int], seed: int = 0
) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    """Make an ellipsoid of noise with a tumour of nested irregular shells inside."""
    chance = np.random.default_rng(seed)
    axes = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in size)]
    brain = sum(axis**2 for axis in axes) < 1
    wobble = coarse_noise(size, chance) * 0.25
    centre = chance.uniform(-0.3, 0.3, 3)
    radius = np.sqrt(sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True))) + wobble
    label = np.zeros(size, np.uint8)
    for value, edge in ((2, 0.42), (3, 0.26), (1, 0.14)):
        label[radius < edge] = value
    label[~brain] = 0
    image = chance.standard_normal((4, *size), np.float32) + label
    return np.where(brain, image, 0).astype(np.float16), label


def make_predictions(
    truth: NDArray[np.uint8], count: int = len(SUBSETS), seed: int = 0
) -> NDArray[np.uint8]:
    """Bend the truth by some voxels, otherwise for each subset, and add a false island."""
    chance = np.random.default_rng(seed)
    # On the box of the tumour alone: bending whole volumes would take a minute.
    where = ndimage.find_objects((truth > 0).astype(np.uint8))
    box = where[0] if where else (slice(0, 1),) * 3
    box = tuple(
        slice(max(0, s.start - 12), min(n, s.stop + 12))
        for s, n in zip(box, truth.shape, strict=True)
    )
    inside = np.zeros_like(truth[box])
    inside[...] = truth[box]
    grid = np.indices(inside.shape, np.float32)
    predictions = np.zeros((count, *truth.shape), np.uint8)
    for s in range(count):
        strength = 1 + 5 * s / max(1, count - 1)
        shift = [strength * coarse_noise(inside.shape, chance) for _ in range(3)]
        bent = ndimage.map_coordinates(inside, grid + np.stack(shift), order=0)
        predictions[s][box] = bent
        corner = [int(chance.integers(0, max(1, n - 8))) for n in truth.shape]
        island = tuple(slice(c, c + 6) for c in corner)
        predictions[s][island] = np.maximum(predictions[s][island], 2)
    return predictions


def coarse_noise(size: tuple[int, ...], chance: np.random.Generator) -> NDArray[np.float32]:
    """Draw noise with a deviation of about one that varies over some 16 voxels."""
    coarse = [max(2, -(-n // 16)) for n in size]
    noise = chance.standard_normal(coarse).astype(np.float32)
    zoom = [n / c for n, c in zip(size, coarse, strict=True)]
    return np.asarray(ndimage.zoom(noise, zoom, order=1, grid_mode=True, mode="nearest"))
