"""The scores of 2025: lesions of truth and prediction matched one to one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from bts_lightning.metrics.lesions.parts import Parts, Truth, pairs
from bts_lightning.metrics.lesions.surfaces import distances

# Below this Dice two lesions are no match; a match that is none costs as much above 1.
_LEAST = 1e-6
# What the challenge writes for a distance that there is not.
_WORST = 373.0


@dataclass(frozen=True)
class Match:
    """A lesion of the truth and its match; Dice and NSD are 0 and HD95 infinite without one."""

    mm3: float
    is_matched: bool
    dice: float = 0.0
    nsd: float = 0.0
    hd95: float = math.inf


@dataclass(frozen=True)
class Matches:
    """The lesions of a region beside their matches."""

    lesions: tuple[Match, ...]
    false: int

    @property
    def found(self) -> int:
        """How many have a match."""
        return sum(match.is_matched for match in self.lesions)

    @property
    def f1(self) -> float:
        """Twice the matches, divided by the lesions of both; NaN if there are none."""
        both = len(self.lesions) + self.found + self.false
        return 2 * self.found / both if both else math.nan

    def segmentation(self) -> tuple[float, float, float]:
        """Average Dice, HD95 and NSD over the matches, as all tasks but metastases do.

        Misses and false lesions do not show here; they show in `f1`.
        """
        if not self.lesions and not self.false:
            return math.nan, math.nan, math.nan
        values = [(m.dice, m.hd95, m.nsd) for m in self.lesions if m.is_matched]
        return _mean(values or [(0.0, _WORST, 0.0)])

    def metastases(self, large: float = 27.0) -> tuple[float, float, float]:
        """Average Dice, HD95 and NSD over large lesions and all false ones.

        Args:
            large: mm³ from which a lesion is large.
        """
        values = [(m.dice, min(m.hd95, _WORST), m.nsd) for m in self.lesions if m.mm3 >= large]
        if not values:
            return math.nan, math.nan, math.nan
        return _mean(values + [(0.0, _WORST, 0.0)] * self.false)


def match(true: Truth, predicted: Sequence[Parts], threads: int) -> list[Matches]:
    """Assign each subset's components to those of the truth, for the greatest Dice in all."""
    truth, frame = true.parts, true.parts.frame
    lesions = list(truth.firsts)
    chosen = [_assign(true, lesions, parts) for parts in predicted]
    matches: list[list[Match]] = [[] for _ in predicted]
    for lesion in lesions:
        mm3 = int(truth.sizes[lesion]) * math.prod(frame.spacing)
        hits = [s for s, found in enumerate(chosen) if lesion in found]
        voxels = [predicted[s].voxels.of([chosen[s][lesion][0]]) for s in hits]
        mine = truth.voxels.of([lesion])
        both = dict(zip(hits, distances(mine, voxels, frame, threads), strict=True))
        for s, row in enumerate(matches):
            if s not in both:
                row.append(Match(mm3, is_matched=False))
                continue
            there, back = both[s]
            within = min(frame.spacing)
            nsd = float((there <= within).mean() + (back <= within).mean()) / 2
            hd95 = float(np.percentile(np.concatenate([there, back]), 95))
            row.append(Match(mm3, True, chosen[s][lesion][1], nsd, hd95))
    counts = [
        len(parts.firsts) - len(found) for parts, found in zip(predicted, chosen, strict=True)
    ]
    return [Matches(tuple(row), false) for row, false in zip(matches, counts, strict=True)]


def _assign(true: Truth, lesions: list[int], predicted: Parts) -> dict[int, tuple[int, float]]:
    """Give the partner of each lesion that has one, and their Dice."""
    parts = list(predicted.firsts)
    dice = np.zeros((len(lesions), len(parts)))
    for (lesion, part), voxels in pairs(true.tags[predicted.places], predicted.numbers).items():
        both = true.parts.sizes[lesion] + predicted.sizes[part]
        dice[lesions.index(lesion), parts.index(part)] = 2 * voxels / both
    costs = np.where(dice >= _LEAST, 1 - dice, 1 + _LEAST)
    return {
        lesions[i]: (parts[j], float(dice[i, j]))
        for i, j in zip(*linear_sum_assignment(costs), strict=True)
        if costs[i, j] < 1
    }


def _mean(values: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    dice, hd95, nsd = np.mean(values, axis=0)
    return float(dice), float(hd95), float(nsd)
