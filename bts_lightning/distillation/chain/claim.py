"""Does a student gain from a teacher, and more from an aligned one? The numbers."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bts_lightning.distillation.chain.gap import Gap
from bts_lightning.errors import UserError
from bts_lightning.report.statistics import bootstrap, holm, mean, signed_rank
from bts_lightning.report.table import EvaluationTable

PAIRS = (("alone", "taught"), ("alone", "aligned"), ("taught", "aligned"))
_POINTS = 100.0


@dataclass(frozen=True)
class Difference:
    """Hold a mean difference in Dice points, its bootstrap interval and its corrected p."""

    mean: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class ArmPair:
    """Hold the gain of one arm over another, all regions averaged in each case.

    p is that of Wilcoxon's signed-rank test, after Holm's correction over all subsets and
    pairs; for the mean over the subsets, over the pairs.
    """

    reference: str
    other: str
    subsets: tuple[Difference, ...]
    mean: Difference


@dataclass(frozen=True)
class Verdict:
    """Hold what a chain has shown.

    Attributes:
        dice: per arm the mean Dice in points, subset × region.
        teachers: per teacher the mean Dice of complete cases in points, by region.
        gaps: per teacher and place the modality gap.
        cases: how many were scored.
    """

    subsets: tuple[str, ...]
    regions: tuple[str, ...]
    cases: int
    dice: dict[str, np.ndarray]
    pairs: tuple[ArmPair, ...]
    teachers: dict[str, np.ndarray]
    gaps: dict[str, dict[str, Gap]]


def judge(
    arms: Mapping[str, EvaluationTable],
    teachers: Mapping[str, EvaluationTable],
    gaps: dict[str, dict[str, Gap]],
) -> Verdict:
    """Compare the arms case by case."""
    first = next(iter(arms.values()))
    for arm, table in arms.items():
        if table.cases != first.cases or table.subsets != first.subsets:
            raise UserError(
                f"the students {arm!r} were scored on other cases or subsets than the others; "
                "delete their evaluations and run it again"
            )
    grids = {arm: _POINTS * table.grid("dice") for arm, table in arms.items()}
    return Verdict(
        subsets=first.subsets,
        regions=first.regions,
        cases=len(first.cases),
        dice={arm: mean(grid, axis=0) for arm, grid in grids.items()},
        pairs=_pairs(grids),
        teachers={
            name: mean(_POINTS * table.grid("dice"), axis=0)[-1] for name, table in teachers.items()
        },
        gaps=gaps,
    )


def _pairs(grids: Mapping[str, np.ndarray]) -> tuple[ArmPair, ...]:
    # Cases × subsets: the mean of the regions, as the paper's "mean Dice".
    gains = [mean(grids[other] - grids[reference], axis=2) for reference, other in PAIRS]
    p = holm(np.array([[signed_rank(column) for column in gain.T] for gain in gains]))
    mean_p = holm(np.array([signed_rank(mean(gain, axis=1)) for gain in gains]))
    found = []
    for row, ((reference, other), gain) in enumerate(zip(PAIRS, gains, strict=True)):
        means = bootstrap(gain)
        each = means.cells()
        subsets = tuple(Difference(*each.at(s), float(p[row, s])) for s in range(gain.shape[1]))
        average = means.over(range(gain.shape[1]))
        found.append(
            ArmPair(reference, other, subsets, Difference(*average.at(), float(mean_p[row])))
        )
    return tuple(found)
