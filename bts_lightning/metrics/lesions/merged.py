"""The scores of 2023 and 2024: what touches a dilated lesion of the truth is its prediction."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bts_lightning.metrics.lesions.components import Frame
from bts_lightning.metrics.lesions.parts import Parts, Truth, pairs
from bts_lightning.metrics.lesions.surfaces import Surface, distances, weighted95
from bts_lightning.metrics.lesions.tasks import Task
from bts_lightning.metrics.policies import Floats

# mm, as BraTS 2024 prints them.
TOLERANCES = (0.5, 1.0)
# BraTS 2024 adds it to NSD's denominator: a perfect score is 0.999999995.
_EPSILON = 1e-8


@dataclass(frozen=True)
class ScoredLesion:
    """A lesion of the truth beside what was predicted for it.

    Attributes:
        first: flat position of its first voxel in C order, which names it.
        mm3: its volume.
        counts: it is large enough to be scored.
        predicted: the first voxels of what was predicted for it.
        nsd: at each of `TOLERANCES`; None in 2023.
    """

    first: int
    mm3: float
    counts: bool
    predicted: tuple[int, ...]
    dice: float
    hd95: float
    nsd: tuple[float, ...] | None


@dataclass(frozen=True)
class RegionScore:
    """The lesions of a region, and their averages, as the challenge prints them.

    Attributes:
        false: the first voxels of predicted lesions that belong to none of the truth.
    """

    dice: float
    hd95: float
    nsd: tuple[float, ...] | None
    lesions: tuple[ScoredLesion, ...]
    false: tuple[int, ...]

    @property
    def counted(self) -> tuple[ScoredLesion, ...]:
        """Those that are large enough."""
        return tuple(lesion for lesion in self.lesions if lesion.counts)

    @property
    def found(self) -> int:
        """How many of the counted have a prediction."""
        return sum(bool(lesion.predicted) for lesion in self.counted)


def score_region(
    truth: Truth,
    predicted: Sequence[Parts],
    task: Task,
    region: str,
    *,
    penalty: float,
    threads: int,
) -> list[RegionScore]:
    """Compare the lesions of a region with what each subset predicted for them.

    Args:
        penalty: mm, the HD95 of a lesion that is missed or invented.
    """
    frame = truth.parts.frame
    least = task.leasts.get(region, task.least)
    touched = [pairs(truth.reach[parts.places], parts.numbers) for parts in predicted]
    common = [pairs(truth.tags[parts.places], parts.numbers) for parts in predicted]
    belongs = [_by_lesion(pairs_of) for pairs_of in touched]
    scored: list[list[ScoredLesion]] = [[] for _ in predicted]
    for number, first in sorted(truth.parts.firsts.items(), key=lambda known: known[1]):
        mine = [found.get(number, []) for found in belongs]
        hits = [s for s, numbers in enumerate(mine) if numbers]
        corners = [predicted[s].corners.of(mine[s]) for s in hits]
        hd95 = dict(
            zip(hits, _hd95(truth.parts.corners.of([number]), corners, frame, threads), strict=True)
        )
        nsd: dict[int, tuple[float, ...]] = {}
        if task.has_nsd:
            voxels = [predicted[s].voxels.of(mine[s]) for s in hits]
            own = truth.parts.voxels.of([number])
            nsd = dict(zip(hits, _nsd(own, voxels, frame, threads), strict=True))
        size = int(truth.parts.sizes[number])
        mm3 = size * math.prod(frame.spacing)
        for s, parts in enumerate(predicted):
            both = sum(common[s].get((number, part), 0) for part in mine[s])
            scored[s].append(
                ScoredLesion(
                    first,
                    mm3,
                    mm3 > least,
                    tuple(sorted(parts.firsts[part] for part in mine[s])),
                    2 * both / (size + int(parts.sizes[mine[s]].sum())),
                    hd95.get(s, penalty),
                    nsd.get(s, (0.0,) * len(TOLERANCES)) if task.has_nsd else None,
                )
            )
    return [
        _average(row, _false(parts, found), penalty, task)
        for row, parts, found in zip(scored, predicted, touched, strict=True)
    ]


def _by_lesion(touched: Mapping[tuple[int, int], int]) -> dict[int, list[int]]:
    belongs: dict[int, list[int]] = {}
    for lesion, number in touched:
        belongs.setdefault(lesion, []).append(number)
    return belongs


def _false(parts: Parts, touched: Mapping[tuple[int, int], int]) -> tuple[int, ...]:
    hit = {number for _, number in touched}
    return tuple(sorted(first for number, first in parts.firsts.items() if number not in hit))


def _average(
    scored: Sequence[ScoredLesion],
    false: tuple[int, ...],
    penalty: float,
    task: Task,
) -> RegionScore:
    counted = [lesion for lesion in scored if lesion.counts]
    invented = len(false) if task.counts_false else 0
    total = len(counted) + invented
    dice, hd95, nsd = 1.0, 0.0, (1.0,) * len(TOLERANCES)
    if total:
        dice = sum(lesion.dice for lesion in counted) / total
        hd95 = (sum(lesion.hd95 for lesion in counted) + penalty * invented) / total
        each = [lesion.nsd for lesion in counted if lesion.nsd]
        nsd = tuple(sum(n[t] for n in each) / total for t in range(len(TOLERANCES)))
    return RegionScore(dice, hd95, nsd if task.has_nsd else None, tuple(scored), false)


def _hd95(truth: Surface, predicted: Sequence[Surface], frame: Frame, threads: int) -> list[float]:
    both = distances(truth, predicted, frame, threads)
    return [
        max(weighted95(there, surface.areas), weighted95(back, truth.areas))
        for surface, (there, back) in zip(predicted, both, strict=True)
    ]


def _nsd(
    truth: Surface, predicted: Sequence[Surface], frame: Frame, threads: int
) -> list[tuple[float, ...]]:
    def at(there: Floats, back: Floats, mm: float) -> float:
        return float((there <= mm).mean() + (back <= mm).mean()) / (2 + _EPSILON)

    both = distances(truth, predicted, frame, threads)
    return [tuple(at(there, back, mm) for mm in TOLERANCES) for there, back in both]
