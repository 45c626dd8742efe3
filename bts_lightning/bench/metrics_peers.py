"""How MONAI, medpy, surface-distance, SimpleITK and torchmetrics score masks, one call each."""

import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from bts_lightning.bench.contender import Scorer
from bts_lightning.modalities import REGIONS

Mask = NDArray[np.bool_]
Labels = NDArray[np.uint8]
MODULES = (
    "monai.metrics",
    "torchmetrics.functional.segmentation",
    "medpy.metric.binary",
    "surface_distance",
    "SimpleITK",
)
# BraTS 2023's: voxels of 1 mm³ that a lesion must exceed, and mm for one missed or invented.
SMALL, PENALTY = 50, 374.0
LESIONS = "lesion by lesion, as in 2023"
# What an expert does; the field's scripts hand it whole volumes.
CROPPED = "medpy, cropped to both masks"
# Enough for MONAI to be a matter of seconds.
QUICK_SUBSETS = 3


def contenders(predicted: Labels, truth: Labels, sample: int, *, quick: bool) -> list[Scorer]:
    """Give all of them; slow ones score a sample of the masks."""
    # Half of these packages warn about the other half.
    warnings.filterwarnings("ignore")
    for module in MODULES:
        # Not on the clock. What is not installed fails there, and the table says so.
        with suppress(ImportError):
            import_module(module)
    # Spread over subsets and regions.
    pairs = [(s, r) for s in range(len(predicted)) for r in range(len(REGIONS))]
    some = pairs[:: max(1, len(pairs) // sample - 1)][:sample]
    subsets = range(QUICK_SUBSETS if quick else len(predicted))
    return [
        _monai(predicted, truth, subsets),
        _one_by_one("surface-distance", _surface_distance, predicted, truth, pairs, "other"),
        _one_by_one(
            "medpy, cropped to both masks", medpy_cropped, predicted, truth, pairs, "pooled"
        ),
        _one_by_one("medpy, full volumes", _medpy, predicted, truth, some, "pooled"),
        _one_by_one("SimpleITK's distance maps", _simpleitk, predicted, truth, some, "pooled"),
        _torchmetrics(predicted, truth, subsets),
        _one_by_one(LESIONS, _lesion_by_lesion, predicted, truth, some[:3], "lesions"),
    ]


def _monai(predicted: Labels, truth: Labels, subsets: range) -> Scorer:
    name = "MONAI, DiceMetric and HausdorffDistanceMetric"
    there = torch.from_numpy(_regions(truth))[None].float()
    contender = Scorer(
        name, lambda: None, masks=len(subsets) * len(REGIONS), definition="directed", rounds=1
    )

    def work() -> None:
        metrics: Any = import_module("monai.metrics")
        hd95 = metrics.HausdorffDistanceMetric(include_background=True, percentile=95)
        dice = metrics.DiceMetric(include_background=True)
        for s in subsets:
            found = torch.from_numpy(_regions(predicted[s]))[None].float()
            overlap, distance = dice(found, there)[0], hd95(found, there)[0]
            for r in range(len(REGIONS)):
                contender.dice[s, r] = float(overlap[r])
                contender.hd95[s, r] = float(distance[r])

    contender.work = work
    return contender


def _torchmetrics(predicted: Labels, truth: Labels, subsets: range) -> Scorer:
    there = torch.from_numpy(_regions(truth))[None].int()
    contender = Scorer(
        "torchmetrics, Dice alone", lambda: None, masks=len(subsets) * len(REGIONS), rounds=1
    )

    def work() -> None:
        functional: Any = import_module("torchmetrics.functional.segmentation")
        for s in subsets:
            found = torch.from_numpy(_regions(predicted[s]))[None].int()
            dice = functional.dice_score(found, there, num_classes=len(REGIONS), average=None)
            for r in range(len(REGIONS)):
                contender.dice[s, r] = float(dice[0, r])

    contender.work = work
    return contender


def _one_by_one(
    name: str,
    open_peer: Callable[[], Callable[[Mask, Mask], tuple[float, float]]],
    predicted: Labels,
    truth: Labels,
    pairs: list[tuple[int, int]],
    definition: str,
) -> Scorer:
    there = _regions(truth)
    contender = Scorer(name, lambda: None, len(pairs), definition, rounds=1)

    def work() -> None:
        measure = open_peer()
        for s, r in pairs:
            found = np.isin(predicted[s], list(REGIONS.values())[r])
            contender.dice[s, r], contender.hd95[s, r] = measure(found, there[r])

    contender.work = work
    return contender


def _medpy() -> Callable[[Mask, Mask], tuple[float, float]]:
    binary: Any = import_module("medpy.metric.binary")
    return lambda found, there: (float(binary.dc(found, there)), float(binary.hd95(found, there)))


def medpy_cropped() -> Callable[[Mask, Mask], tuple[float, float]]:
    """Give medpy as an expert would call it: on the box that holds both masks."""
    measure = _medpy()

    def cropped(found: Mask, there: Mask) -> tuple[float, float]:
        box = ndimage.find_objects((found | there).astype(np.uint8))[0]
        return measure(found[box], there[box])

    return cropped


def _lesion_by_lesion() -> Callable[[Mask, Mask], tuple[float, float]]:
    """Score as the program of BraTS 2023 goes about it: whole volumes for each lesion."""
    measure = _surface_distance()
    full, edges = (ndimage.generate_binary_structure(3, n) for n in (3, 2))

    def by_lesion(found: Mask, there: Mask) -> tuple[float, float]:
        joined, count = ndimage.label(ndimage.binary_dilation(there, edges, 3), full)
        parts, number = ndimage.label(found, full)
        scores, hit = [], {0}
        for lesion in range(1, count + 1):
            mine = there & (joined == lesion)
            touching = np.unique(parts[ndimage.binary_dilation(mine, edges, 3)])
            hit |= set(touching.tolist())
            answer = np.isin(parts, touching[touching > 0])
            if mine.sum() > SMALL:
                scores.append(measure(answer, mine) if answer.any() else (0.0, PENALTY))
        scores += [(0.0, PENALTY)] * (number + 1 - len(hit))
        dice, hd95 = np.mean(scores, axis=0) if scores else (1.0, 0.0)
        return float(dice), float(hd95)

    return by_lesion


def _surface_distance() -> Callable[[Mask, Mask], tuple[float, float]]:
    module: Any = import_module("surface_distance")

    def measure(found: Mask, there: Mask) -> tuple[float, float]:
        distances = module.compute_surface_distances(there, found, (1, 1, 1))
        dice = module.compute_dice_coefficient(there, found)
        return float(dice), float(module.compute_robust_hausdorff(distances, 95))

    return measure


def _simpleitk() -> Callable[[Mask, Mask], tuple[float, float]]:
    sitk: Any = import_module("SimpleITK")

    def surface_and_map(mask: Mask) -> tuple[Mask, NDArray[np.float32]]:
        image = sitk.GetImageFromArray(mask.astype(np.uint8))
        contour = sitk.LabelContour(image, fullyConnected=False)
        distance = sitk.SignedMaurerDistanceMap(
            contour, squaredDistance=False, useImageSpacing=True
        )
        return sitk.GetArrayFromImage(contour) > 0, np.abs(sitk.GetArrayFromImage(distance))

    def measure(found: Mask, there: Mask) -> tuple[float, float]:
        (surface, near), (true_surface, true_near) = surface_and_map(found), surface_and_map(there)
        both = np.concatenate([true_near[surface], near[true_surface]])
        dice = 2 * np.count_nonzero(found & there) / (found.sum() + there.sum())
        return float(dice), float(np.percentile(both, 95))

    return measure


def _regions(labels: Labels) -> Mask:
    return np.stack([np.isin(labels, values) for values in REGIONS.values()])
