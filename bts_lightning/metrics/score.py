"""Score the label maps of every subset of a case against its truth, all of them together."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from bts_lightning.metrics.distances import Hd95, Spacing, hd95_of_masks, outward_steps
from bts_lightning.metrics.policies import EmptyPolicy, Floats, fill_hd95, ratio
from bts_lightning.metrics.surface import MOST_SUBSETS, occupied, pack, peel
from bts_lightning.metrics.threads import in_threads, shares
from bts_lightning.modalities import REGIONS

LabelMaps = NDArray[np.uint8]

# Region × stored label: which values make up each region.
_MEMBERS = np.array([[label in labels for label in range(4)] for labels in REGIONS.values()])


@dataclass(frozen=True)
class Scores:
    """What `score` measured: arrays subsets × regions (WT, TC, ET), hd95 in mm."""

    dice: Floats
    hd95: Floats
    sensitivity: Floats
    precision: Floats
    true_ml: Floats
    predicted_ml: Floats


def score(
    predicted: LabelMaps,
    truth: LabelMaps,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    *,
    hd95: Hd95 = "pooled",
    empty: EmptyPolicy = "brats",
    threads: int | None = None,
) -> Scores:
    """Measure S×D×H×W label maps against one D×H×W truth.

    A surface is every voxel with a face neighbour outside its mask; beyond the grid is outside.
    `pooled` is the 95th percentile of the distances of both directions together, as medpy, nnU-Net
    v1 and most papers of the field have it. `directed` is the larger of the two directions' own
    percentiles, as MONAI has it; surface-distance, too, takes the larger, but weighs surface
    elements by their area on the grid of voxel corners: the same between flat plates, fractions of
    a voxel apart elsewhere.

    Args:
        predicted: values 0 to 3.
        truth: values 0 to 3.
        spacing: millimetres between voxels along D, H, W.
        hd95: which of the two definitions.
        empty: what an empty truth or prediction scores, see `policies`.
        threads: by default the machine's cores, four at most.

    Example:
        >>> truth = np.zeros((8, 8, 8), np.uint8)
        >>> truth[2:5, 2:5, 2:5] = 3
        >>> score(truth[None], truth).dice.tolist()
        [[1.0, 1.0, 1.0]]
    """
    _check(predicted, truth, spacing, hd95, empty)
    if len(predicted) == 0:
        return Scores(*(np.empty((0, len(_MEMBERS))) for _ in fields(Scores)))
    predicted, truth = np.ascontiguousarray(predicted), np.ascontiguousarray(truth)
    millimetres = (float(spacing[0]), float(spacing[1]), float(spacing[2]))
    threads = threads or min(4, os.cpu_count() or 1)
    box = _box(predicted, truth, threads)
    parts = [
        _score_some(predicted[i : i + MOST_SUBSETS], truth, box, millimetres, hd95, empty, threads)
        for i in range(0, len(predicted), MOST_SUBSETS)
    ]
    return Scores(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Scores)))


def _score_some(
    predicted: LabelMaps,
    truth: LabelMaps,
    box: tuple[range, range, range],
    spacing: Spacing,
    hd95: Hd95,
    empty: EmptyPolicy,
    threads: int,
) -> Scores:
    halo = outward_steps(spacing).halo
    corner = (box[0].start, box[1].start, box[2].start)
    words = np.zeros([len(b) + 2 * h for b, h in zip(box, halo, strict=True)], np.uint64)
    surface = np.zeros_like(words)
    slabs = shares(len(box[0]), threads)
    counted = in_threads(
        lambda z: pack(predicted, truth, _MEMBERS, corner, halo, z.start, z.stop, words),
        slabs,
        threads,
    )
    points = np.concatenate(
        in_threads(lambda z: peel(words, halo, z.start, z.stop, surface), slabs, threads)
    )

    pairs = np.sum(counted, axis=0).astype(np.float64)  # S prediction truth
    member = _MEMBERS.astype(np.float64)
    overlap = np.einsum("spt,rp,rt->sr", pairs, member, member)
    found = np.einsum("spt,rp->sr", pairs, member)
    there = np.einsum("spt,rt->sr", pairs, member)
    nothing = (found == 0) & (there == 0)
    measured = hd95_of_masks(surface, points, (found > 0) & (there > 0), spacing, hd95, threads)
    millilitres = float(np.prod(spacing)) / 1000
    return Scores(
        dice=ratio(2 * overlap, found + there, nothing, empty),
        hd95=fill_hd95(measured, there, found, empty),
        sensitivity=ratio(overlap, there, nothing, empty),
        precision=ratio(overlap, found, nothing, empty),
        true_ml=there * millilitres,
        predicted_ml=found * millilitres,
    )


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


def _box(predicted: LabelMaps, truth: LabelMaps, threads: int) -> tuple[range, range, range]:
    """Find the box of all foreground, one voxel if there is none; refuse values no label has."""
    seen = in_threads(
        lambda z: occupied(predicted, truth, z.start, z.stop), shares(len(truth), threads), threads
    )
    most = _MEMBERS.shape[1] - 1
    if int(np.bitwise_or.reduce([bits for *_, bits in seen])) > most:
        raise ValueError(f"a label map holds a value above {most}; stored values are 0 to {most}")
    planes = np.concatenate([planes for planes, _, _, _ in seen])
    rows = np.logical_or.reduce([rows for _, rows, _, _ in seen])
    columns = np.logical_or.reduce([columns for _, _, columns, _ in seen])
    return _extent(planes), _extent(rows), _extent(columns)


def _extent(flags: NDArray[np.bool_]) -> range:
    where = np.flatnonzero(flags)
    return range(int(where[0]), int(where[-1]) + 1) if where.size else range(1)
