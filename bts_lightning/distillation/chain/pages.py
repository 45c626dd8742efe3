"""The result of a chain as Markdown and as one HTML page."""

import numpy as np

from bts_lightning.distillation.chain.claim import Difference, Verdict
from bts_lightning.distillation.chain.gap import HEAD
from bts_lightning.distillation.chain.plan import ARMS, ChainPlan
from bts_lightning.modalities import marked
from bts_lightning.report.comparison import difference, p_value
from bts_lightning.report.document import Document, Sheet
from bts_lightning.report.paired import ALPHA, too_few
from bts_lightning.report.statistics import fewest_patients
from bts_lightning.report.summary import INTERVALS, count, count_cases

PUBLISHED = (
    "Mind the Gap (arXiv 2409.19366) claims +1.75 points of mean Dice for an aligned teacher."
)


def summary(plan: ChainPlan, claim: Verdict) -> list[str]:
    """Say in sentences what came out, whichever way."""
    each = "one student for each" if plan.students == "per_subset" else "one student for all"
    subsets = "1 subset" if len(claim.subsets) == 1 else f"{len(claim.subsets)} subsets"
    also = ""
    for whom, words in (("teachers", plan.for_teachers), ("students", plan.for_students)):
        also += f"; {whom} with {' '.join(words)}" if words else ""
    said = [
        f"{count_cases(claim.cases, claim.patients)}; {subsets}, {each}; the aligned teacher is "
        f"the teacher with {' '.join(plan.align)}{also}. {' '.join(plan.words)}"
    ]
    for pair in claim.pairs:
        chance = "no more than the choice of cases can explain"
        if pair.mean.p < ALPHA:
            chance = "more than the choice of cases can explain"
        elif claim.patients < fewest_patients(len(claim.pairs)):
            chance = f"which {count('patient', claim.patients)} cannot tell from chance"
        said.append(
            f"{ARMS[pair.other]} against {ARMS[pair.reference]}: {_gain(pair.mean)} "
            f"points of mean Dice over the subsets (p {p_value(pair.mean.p) or 'unknown'}), "
            f"{chance}."
        )
    heads = ((name, gaps[HEAD]) for name, gaps in claim.gaps.items() if HEAD in gaps)
    apart = ", ".join(f"{gap.distance:.3f} in the {_words(name)}" for name, gap in heads)
    if apart:
        said.append(f"Distance between modalities at the head: {apart}.")
    return [*said, PUBLISHED]


def document(plan: ChainPlan, claim: Verdict) -> Document:
    """Lay out the result: Dice, gains, teachers and gaps."""
    first, *others = summary(plan, claim)
    sheets = [_gains(claim), _dice(claim), _teachers(plan, claim), _gaps(claim)]
    return Document(f"Distillation: {plan.folder.name}", others, sheets, lead=first)


def _gains(claim: Verdict) -> Sheet:
    titles = [f"{ARMS[c.other]} − {ARMS[c.reference]}" for c in claim.pairs]
    lines = [[c.subsets[s] for c in claim.pairs] for s in range(len(claim.subsets))]
    lines.append([c.mean for c in claim.pairs])
    names = [*map(marked, claim.subsets), f"mean over {len(claim.subsets)}"]
    rows = [
        [name, *(text for gain in line for text in (_gain(gain), p_value(gain.p)))]
        for name, line in zip(names, lines, strict=True)
    ]
    cells, averages = len(claim.subsets) * len(titles), len(titles)
    notes = [
        f"Differences of the mean Dice of {', '.join(claim.regions)} in points, paired by case. "
        f"{INTERVALS} p: Wilcoxon's signed-rank test over patients after Holm's correction over "
        f"the {cells} cells, and over the {averages} averages by themselves; * marks p < {ALPHA}. "
        "Each arm was trained once: what another seed would change is not in the intervals."
    ]
    notes += too_few(claim.patients, {"cell": cells, "average": averages})
    heads = [text for title in titles for text in (title, "p (Holm)")]
    return Sheet("Gain in mean Dice (points)", ["T1 T1c T2 FLAIR", *heads], rows, notes, sums=1)


def _dice(claim: Verdict) -> Sheet:
    # The arms side by side and their mean first: a page shows half of the columns.
    heads = [f"{column}: {ARMS[arm]}" for column in ("mean", *claim.regions) for arm in claim.dice]
    lines = [[grid[s] for grid in claim.dice.values()] for s in range(len(claim.subsets))]
    lines.append([grid.mean(axis=0) for grid in claim.dice.values()])
    names = [*map(marked, claim.subsets), f"mean over {len(claim.subsets)}"]
    rows = [
        [name, *(text for column in zip(*map(_cells, line), strict=True) for text in column)]
        for name, line in zip(names, lines, strict=True)
    ]
    return Sheet("Dice of the students (%)", ["T1 T1c T2 FLAIR", *heads], rows, sums=1)


def _teachers(plan: ChainPlan, claim: Verdict) -> Sheet:
    rows = [[_words(name), *_cells(dice)] for name, dice in claim.teachers.items()]
    note = f"All four modalities. The aligned teacher has {' '.join(plan.align)}."
    return Sheet("Dice of the teachers (%)", ["", "mean", *claim.regions], rows, [note])


def _gaps(claim: Verdict) -> Sheet:
    places = list(dict.fromkeys(place for gaps in claim.gaps.values() for place in gaps))
    heads = [f"{_words(name)}: {what}" for name in claim.gaps for what in ("distance", "Fréchet")]
    rows = []
    for place in places:
        cells = []
        for gaps in claim.gaps.values():
            gap = gaps.get(place)
            cells += [f"{gap.distance:.3f}", f"{gap.frechet:.3f}"] if gap else ["–", "–"]
        rows.append([place, *cells])
    notes = [
        "How far the features of two modalities lie apart in the brain of complete cases, mean "
        "over the six pairs, in units of the spread of all four, so that smaller features are no "
        "closer. distance: half the mean squared difference at the same voxel (0 equal, 1 "
        "unrelated). Fréchet: between fitted Gaussians, per channel. Images are what the data have "
        "before any network, each normalised by itself; levels are where a network keeps the "
        "modalities apart; head is what the head reads when the network sees one modality alone."
    ]
    return Sheet("Modality gap of the teachers", ["", *heads], rows, notes)


def _gain(gain: Difference) -> str:
    return difference(gain.mean, gain.low, gain.high, gain.p < ALPHA)


def _cells(dice: np.ndarray) -> list[str]:
    """Write the columns of a row of Dice by region."""
    return [f"{value:.2f}" if np.isfinite(value) else "–" for value in (dice.mean(), *dice)]


def _words(name: str) -> str:
    return name.replace("_", " ")
