"""What the lesions of a case give for its rows of the table."""

from dataclasses import dataclass

import numpy as np

from bts_lightning.metrics.distances import Spacing
from bts_lightning.metrics.lesions.cases import CutCase
from bts_lightning.metrics.lesions.parts import Labels
from bts_lightning.metrics.lesions.tasks import TASKS, LesionRules
from bts_lightning.metrics.policies import Floats
from bts_lightning.modalities import Scheme


@dataclass(frozen=True)
class Found:
    """A lesion of the truth in one subset: position in the arrays, volume, and how it was met.

    Attributes:
        hd95: mm; of a lesion that is missed the penalty, or infinity in 2025.
    """

    subset: int
    region: int
    mm3: float
    counts: bool
    is_found: bool
    dice: float
    hd95: float


@dataclass(frozen=True, eq=False)
class LesionScores:
    """What the lesions of a case give, subsets × regions, and each lesion by itself."""

    dice: Floats
    hd95: Floats
    nsd: Floats
    lesions: Floats
    found: Floats
    false: Floats
    each: list[Found]


def measure(
    truth: Labels,
    predicted: Labels,
    spacing: Spacing,
    rules: LesionRules,
    threads: int,
    scheme: Scheme,
) -> LesionScores:
    """Score the lesions of some subsets of a case for all columns."""
    policy, name = rules.policy, rules.task
    task = TASKS[policy, name].only(tuple(scheme.regions))
    case = CutCase(truth, predicted, spacing, task, threads)
    shape = len(predicted), len(scheme.regions)
    dice, hd95, nsd, lesions, found, false = np.full((6, *shape), np.nan)
    scores = LesionScores(dice, hd95, nsd, lesions, found, false, [])
    for r, region in enumerate(scheme.regions):
        if policy == "brats2025":
            for s, matches in enumerate(case.matched(region)):
                means = matches.metastases() if name == "met" else matches.segmentation()
                scores.dice[s, r], scores.hd95[s, r], scores.nsd[s, r] = means
                scores.lesions[s, r] = len(matches.lesions)
                scores.found[s, r], scores.false[s, r] = matches.found, matches.false
                scores.each.extend(
                    Found(s, r, m.mm3, True, m.is_matched, m.dice, m.hd95) for m in matches.lesions
                )
            continue
        for s, score in enumerate(case.scored(region)):
            scores.dice[s, r], scores.hd95[s, r] = score.dice, score.hd95
            if score.nsd:
                # At 1 mm, as the column of whole regions.
                scores.nsd[s, r] = score.nsd[-1]
            scores.lesions[s, r] = len(score.counted)
            scores.found[s, r], scores.false[s, r] = score.found, len(score.false)
            scores.each.extend(
                Found(s, r, m.mm3, m.counts, bool(m.predicted), m.dice, m.hd95)
                for m in score.lesions
            )
    return scores
