"""Score the label maps of every subset of a case against its truth, all of them together."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import numpy as np

from bts_lightning.metrics.calibration.counts import Calibration
from bts_lightning.metrics.lesions.measure import Found
from bts_lightning.metrics.lesions.tasks import LesionRules
from bts_lightning.metrics.masks import LabelMaps, Masks, box_of
from bts_lightning.metrics.policies import EmptyPolicy, Floats, Hd95, fill
from bts_lightning.metrics.surface import most_subsets
from bts_lightning.metrics.table import VOLUMES, Metric, counted_by, measured_by
from bts_lightning.modalities import BRATS, Scheme


def score(
    predicted: LabelMaps,
    truth: LabelMaps,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    *,
    metrics: Sequence[Metric] | None = None,
    hd95: Hd95 = "pooled",
    empty: EmptyPolicy = "brats",
    lesions: LesionRules | None = None,
    each: list[Found] | None = None,
    calibration: Calibration | None = None,
    scheme: Scheme = BRATS,
    threads: int | None = None,
) -> dict[str, Floats]:
    """Measure S×D×H×W label maps against one D×H×W truth: subsets × regions by name.

    Beside the metrics come the volumes `true_ml` and `predicted_ml`, where lesions are scored how
    many there are, and where probabilities are their entropy.

    A surface is every voxel with a face neighbour outside its mask; beyond the grid is outside.
    `pooled` is the 95th percentile of the distances of both directions together, as medpy, nnU-Net
    v1 and most papers of the field have it. `directed` is the larger of the two directions' own
    percentiles, as MONAI has it; surface-distance, too, takes the larger, but weighs surface
    elements by their area on the grid of voxel corners: the same between flat plates, fractions of
    a voxel apart elsewhere.

    Args:
        predicted: in stored classes of the scheme.
        truth: likewise.
        spacing: millimetres between voxels along D, H, W.
        metrics: rows of the table of metrics; by default all that `lesions` admits.
        hd95: which of the two definitions.
        empty: what an empty truth or prediction scores, see `policies`.
        lesions: also score lesion by lesion, by the rules of a challenge.
        each: takes every lesion of the truth in every subset.
        calibration: what was counted of the probabilities, to be measured too.
        scheme: which classes there are, and which regions are scored.
        threads: by default the machine's cores, four at most.

    Example:
        >>> truth = np.zeros((8, 8, 8), np.uint8)
        >>> truth[2:5, 2:5, 2:5] = 3
        >>> score(truth[None], truth)["dice"].tolist()
        [[1.0, 1.0, 1.0]]
    """
    _check(predicted, truth, spacing, hd95, empty)
    predicted, truth = np.ascontiguousarray(predicted), np.ascontiguousarray(truth)
    millimetres = (float(spacing[0]), float(spacing[1]), float(spacing[2]))
    threads = threads or min(4, os.cpu_count() or 1)
    box = box_of(predicted, truth, threads, scheme.classes - 1)
    at_once = most_subsets(len(scheme.regions))
    parts = []
    metrics = measured_by(lesions, calibration is not None) if metrics is None else metrics
    for i in range(0, max(1, len(predicted)), at_once):
        some = predicted[i : i + at_once]
        bins = calibration and calibration.some(slice(i, i + at_once))
        masks = Masks.of(some, truth, box, millimetres, hd95, threads, scheme, lesions, bins)
        parts.append(_measure(masks, metrics, empty))
        if lesions and each is not None:
            each += [replace(one, subset=one.subset + i) for one in masks.lesion_scores.each]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _measure(masks: Masks, metrics: Sequence[Metric], empty: EmptyPolicy) -> dict[str, Floats]:
    volumes = np.array([masks.there, masks.found]) * np.prod(masks.spacing) / 1000
    measured = {}
    for m in metrics:
        seen = masks if m.seen is None else m.seen(masks)
        values = m.measure(seen)
        if not m.by:
            values = fill(values, seen.there, seen.found, m.best, m.worst, empty)
        measured[m.name] = values
    counts = {c.__name__: c(masks) for c in counted_by(masks.lesions, masks.calibration)}
    return measured | dict(zip(VOLUMES, volumes, strict=True)) | counts


def _check(
    predicted: LabelMaps, truth: LabelMaps, spacing: Sequence[float], hd95: str, empty: str
) -> None:
    if predicted.ndim != 4 or predicted.shape[1:] != truth.shape or 0 in truth.shape:
        raise ValueError(
            f"label maps of shape {predicted.shape} do not fit a truth of shape {truth.shape}; "
            "expected S×D×H×W and D×H×W, none of them 0"
        )
    if predicted.dtype != np.uint8 or truth.dtype != np.uint8:
        raise ValueError(f"label maps are {predicted.dtype} and {truth.dtype}; both must be uint8")
    if len(spacing) != 3 or not all(np.isfinite(s) and s > 0 for s in spacing):
        raise ValueError(f"spacing {tuple(spacing)} is not three positive lengths in mm")
    for name, value, options in (
        ("hd95", hd95, get_args(Hd95)),
        ("empty", empty, get_args(EmptyPolicy)),
    ):
        if value not in options:
            raise ValueError(f"{name}={value!r} is unknown; it is one of {', '.join(options)}")
