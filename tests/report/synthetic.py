"""Evaluation tables and slices that look like BraTS results, made from a seed."""

from typing import Any

import numpy as np

from bts_lightning.modalities import (
    COMPLETE,
    REGIONS,
    SUBSETS,
    Subset,
    subset_name,
    subsets_within,
)
from bts_lightning.report.slices import CaseSlices, choose_slices

# Logit of Dice: a start, then what T1, T1c, T2 and FLAIR add; close to the tables of the field.
TRENDS: dict[str, tuple[float, tuple[float, float, float, float]]] = {
    "WT": (0.8, (0.10, 0.20, 0.55, 0.95)),
    "TC": (0.3, (0.15, 1.15, 0.20, 0.25)),
    "ET": (-0.6, (0.10, 1.60, 0.10, 0.15)),
}
HALF_BRAIN_ML = {"WT": 95.0, "TC": 38.0, "ET": 20.0}


def rows(
    cases: int = 12,
    *,
    seed: int = 0,
    shift: float = 0.0,
    noise: int | None = None,
    et_free: int = 0,
    lacking: dict[int, Subset] | None = None,
    prefix: str = "BraTS2021_",
) -> list[dict[str, Any]]:
    """Make a table's rows: `shift` moves all logits, `noise` reseeds the network and not the cases.

    The first `et_free` cases have no ET and score as the policy `brats` says; `lacking` gives the
    modalities of cases that do not have all four.
    """
    patients = np.random.default_rng(seed)
    network = np.random.default_rng(seed + 1 if noise is None else noise)
    table = []
    for number in range(cases):
        ease = patients.normal(0, 0.55)
        volume = {region: ml * patients.lognormal(0, 0.5) for region, ml in HALF_BRAIN_ML.items()}
        available = (lacking or {}).get(number, COMPLETE)
        for subset in SUBSETS:
            wobble = network.normal(0, 0.25, size=3)
            if subset not in subsets_within(available):
                continue
            for region, error in zip(REGIONS, wobble, strict=True):
                name = f"{prefix}{number:05d}"
                row = {"case": name, "subset": subset_name(subset), "region": region}
                if region == "ET" and number < et_free:
                    table.append(row | _without_et(found=bool(error > 0)))
                    continue
                start, adds = TRENDS[region]
                gain = sum(a for a, here in zip(adds, subset, strict=True) if here)
                dice = float(1 / (1 + np.exp(-(start + gain + ease + error + shift))))
                table.append(row | _scores(dice, volume[region], float(error)))
    return table


def protocol(**changes: Any) -> dict[str, Any]:
    """Describe how the synthetic table was made, as `protocol.json` does."""
    return {
        "experiment": "a2fseg",
        "network": "A2FSeg",
        "checkpoint": "checkpoints/best.ckpt",
        "commit": "0123456789abcdef",
        "versions": {"torch": "2.9.0", "bts_lightning": "0.1.0"},
        "split": {"name": "seeded 70/10/20, test", "fingerprint": "5a17"},
        "data_fingerprint": "da7a",
        "hd95": "pooled",
        "empty": "brats",
        "window": 128,
        "overlap": 0.5,
        "weighting": "gaussian",
        "mirror": False,
        "precision": "32",
        "seed": 0,
        "created": "2025-06-01T12:00:00",
        "unscored": [],
    } | changes


def slices(case: str, *, size: int = 96, depth: int = 40, seed: int = 0) -> CaseSlices:
    """Draw a head with a nested tumour and predictions that miss more as less is present."""
    random = np.random.default_rng(seed)
    x, y, z = np.meshgrid(
        *(np.linspace(-1, 1, n) for n in (size, int(size * 1.2), depth)), indexing="ij"
    )
    radius = np.sqrt((x / 0.9) ** 2 + (y / 0.95) ** 2 + (z / 1.1) ** 2)
    brain = radius < 1
    folds = np.sin(9 * x + seed) * np.cos(8 * y) * np.cos(5 * z)
    cx, cy, cz = random.uniform(-0.35, 0.35, size=3)
    bumps = 1 + 0.15 * np.sin(7 * x + 3 * y) + 0.1 * np.cos(9 * y - 4 * z)
    distance = np.sqrt((x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2) * bumps
    truth = _nested(distance, brain, 1.0)
    contrast = {0: (0, -0.6, -0.2, -0.3), 1: (0, 0.4, 1.6, 2.2), 2: (0, 1.4, 0.4, 0.8)}
    image = np.stack([0.5 * folds + random.normal(0, 0.1, folds.shape) for _ in range(4)])
    image[0] += 0.4 * (folds > 0)
    for modality, label, value in [
        (1, 3, contrast[2][1] + 1.5),
        (1, 1, -1.0),
        (2, 2, contrast[1][2]),
        (2, 1, 2.2),
        (3, 2, contrast[1][3]),
        (3, 3, 1.2),
        (0, 1, -0.8),
    ]:
        image[modality][truth == label] += value
    image = np.where(brain, image, 0).astype(np.float16)
    predicted = np.stack(
        [
            _nested(
                distance
                + random.normal(0, 0.01, distance.shape)
                + 0.03 * (4 - sum(s)) * np.sin(5 * x),
                brain,
                1 - 0.05 * (4 - sum(s)),
            )
            for s in SUBSETS
        ]
    )
    names = [subset_name(s) for s in SUBSETS]
    return choose_slices(case, image, truth, predicted, names, spacing=(1.0, 1.0, 1.0))


def _nested(distance: np.ndarray, brain: np.ndarray, scale: float) -> np.ndarray:
    labels = np.zeros(distance.shape, np.uint8)
    for limit, label in ((0.45, 2), (0.28, 3), (0.16, 1)):
        labels[(distance < limit * scale) & brain] = label
    return labels


def _scores(dice: float, volume: float, error: float) -> dict[str, float]:
    return {
        "dice": dice,
        "hd95": float(40 * (1 - dice) ** 1.3 + 1),
        "sensitivity": min(1.0, dice * (1 + 0.05 * error)),
        "precision": min(1.0, dice * (1 - 0.05 * error)),
        "true_ml": volume,
        "predicted_ml": volume * (1 + 0.3 * error),
    }


def _without_et(*, found: bool) -> dict[str, float]:
    return {
        "dice": 0.0 if found else 1.0,
        "hd95": 373.12866 if found else 0.0,
        "sensitivity": 0.0 if found else 1.0,
        "precision": 0.0 if found else 1.0,
        "true_ml": 0.0,
        "predicted_ml": 0.4 if found else 0.0,
    }
