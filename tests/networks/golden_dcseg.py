"""The terms of DC-Seg are those of the copy of its code that could be had."""

import math
from pathlib import Path

import numpy as np
import torch

from bts_lightning.losses.contrast import anatomy_contrast, modality_contrast, similarities
from bts_lightning.networks.painting import divergence_from_normal
from tests.golden.fill_rule import noise
from tests.networks.conformity import Array, Row, read

LIMIT = 1e-5
SIZE = 14


class Terms:
    """Judge the terms of two samples, and of the first alone."""

    def masks(self, path: Path) -> int:
        return 1

    def check(self, path: Path, index: int) -> list[Row]:
        golden = read(path)
        content, style, mean, deviation = (torch.from_numpy(x.astype(np.float32)) for x in made())
        real = torch.ones(2, 4, dtype=torch.bool)
        rows = []
        for batch in (2, 1):
            found = {
                "anatomy": anatomy_contrast(content[:batch], real[:batch]),
                "modality": modality_contrast(style[:batch], real[:batch]),
                "kl": divergence_from_normal(
                    mean[:, :batch].flatten(0, 1), deviation[:, :batch].flatten(0, 1)
                ).mean()
                * 4
                / mean.shape[2],
            }
            for name, value in found.items():
                expected = float(golden[f"batch{batch}/{name}"])
                rows.append(Row(f"{name}/{batch}", abs(float(value) - expected), LIMIT))
        alike = similarities(content.flatten(0, 1), real.flatten()).numpy()
        error = np.abs(alike - golden["batch2/ssim"]).max()
        return [*rows, Row("similarities", float(error), LIMIT)]


def made() -> tuple[Array, Array, Array, Array]:
    """Give contents, styles, and mean and deviation of the spreads, by the rule of the file."""
    axes = [np.arange(size, dtype=np.float64) for size in (2, 4, 8, SIZE, SIZE, SIZE)]
    b, _, c, z, y, x = np.meshgrid(*axes, indexing="ij", sparse=True)
    waves = np.sin(0.3 * z + 0.2 * c + b) + np.cos(0.25 * y - 0.35 * x + 0.5 * c + 2 * b)
    content = waves + heights((2, 4, 8, SIZE, SIZE, SIZE), 1000003, 0.4)
    style = heights((1, 4, 128), 3000017, 1.0) + heights((2, 4, 128), 2000003, 0.8)
    mean = heights((4, 2, 128), 4000037, 1.0)
    return content, style, mean, 1.2 + heights((4, 2, 128), 5000011, 0.8)


def heights(shape: tuple[int, ...], first: int, height: float) -> Array:
    """Give noise of the rule."""
    return height * noise(np.arange(math.prod(shape)) + first).reshape(shape)


GOLDEN = {"dcseg_terms": Terms()}
