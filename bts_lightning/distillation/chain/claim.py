"""Does a student gain from a teacher, and more from an aligned one? The numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bts_lightning.distillation.chain.gap import Gap
from bts_lightning.errors import UserError
from bts_lightning.report.paired import shared_patients
from bts_lightning.report.statistics import case_means, mean, patient_means, signed_ranks
from bts_lightning.report.table import EvaluationTable

PAIRS = (("alone", "taught"), ("alone", "aligned"), ("taught", "aligned"))
_POINTS = 100.0


@dataclass(frozen=True)
class Difference:
    """Hold a mean difference in Dice points, its interval and its corrected p."""

    mean: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class ArmPair:
    """Hold the gain of one arm over another, all regions averaged in each case.

    p is that of Wilcoxon's signed-rank test over patients, after Holm's correction over all
    subsets and pairs; for the mean over the subsets, over the pairs.
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
        patients: how many these show.
    """

    subsets: tuple[str, ...]
    regions: tuple[str, ...]
    cases: int
    patients: int
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
    patients = shared_patients(*arms.values())
    grids = {arm: _POINTS * table.grid("dice") for arm, table in arms.items()}
    return Verdict(
        subsets=first.subsets,
        regions=first.regions,
        cases=len(first.cases),
        patients=len(set(patients)),
        dice={arm: mean(grid, axis=0) for arm, grid in grids.items()},
        pairs=_pairs(grids, patients),
        teachers={
            name: mean(_POINTS * table.grid("dice"), axis=0)[-1] for name, table in teachers.items()
        },
        gaps=gaps,
    )


def _pairs(grids: Mapping[str, np.ndarray], patients: Sequence[str]) -> tuple[ArmPair, ...]:
    # Cases × subsets: the mean of the regions, as the paper's "mean Dice".
    gains = [mean(grids[other] - grids[reference], axis=2) for reference, other in PAIRS]
    each = patient_means(np.stack(gains, axis=1), patients)  # patients × pairs × subsets
    p, mean_p = signed_ranks(each), signed_ranks(mean(each, axis=2))
    found = []
    for row, ((reference, other), gain) in enumerate(zip(PAIRS, gains, strict=True)):
        made = case_means(gain, patients)
        cells, average = made.cells(), made.over(range(gain.shape[1]))
        subsets = tuple(Difference(*cells.at(s), float(p[row, s])) for s in range(gain.shape[1]))
        found.append(
            ArmPair(reference, other, subsets, Difference(*average.at(), float(mean_p[row])))
        )
    return tuple(found)
