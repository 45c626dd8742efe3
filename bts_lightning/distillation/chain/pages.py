"""The result of a chain as Markdown and as one HTML page."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

import numpy as np

from bts_lightning.distillation.chain.claim import Claim, Gain
from bts_lightning.distillation.chain.gap import HEAD
from bts_lightning.distillation.chain.plan import ARMS, Plan
from bts_lightning.modalities import dots, parse_subset
from bts_lightning.report.comparison import p_value
from bts_lightning.report.paired import ALPHA
from bts_lightning.report.statistics import fewest_cases
from bts_lightning.report.summary import count_cases
from bts_lightning.report.table import REGION_NAMES

COLUMNS = ("mean", *REGION_NAMES)
PUBLISHED = (
    "Mind the Gap (arXiv 2409.19366) claims +1.75 points of mean Dice for an aligned teacher."
)


@dataclass(frozen=True)
class Sheet:
    """Hold a table as text; the first column names the rows, `sums` of the last stand out."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    sums: int = 0


def sheets(plan: Plan, claim: Claim) -> list[Sheet]:
    """Lay out Dice, gains, teachers and gaps."""
    return [_gains(claim), _dice(claim), _teachers(plan, claim), _gaps(claim)]


def summary(plan: Plan, claim: Claim) -> list[str]:
    """Say in sentences what came out, whichever way."""
    each = "one student for each" if plan.students == "per_subset" else "one student for all"
    subsets = "1 subset" if len(claim.subsets) == 1 else f"{len(claim.subsets)} subsets"
    also = ""
    for whom, words in (("teachers", plan.for_teachers), ("students", plan.for_students)):
        also += f"; {whom} with {' '.join(words)}" if words else ""
    said = [
        f"{count_cases(claim.cases)}; {subsets}, {each}; the aligned teacher is "
        f"the teacher with {' '.join(plan.align)}{also}. {' '.join(plan.words)}"
    ]
    for contrast in claim.contrasts:
        chance = "no more than the choice of cases can explain"
        if contrast.mean.p < ALPHA:
            chance = "more than the choice of cases can explain"
        elif claim.cases < fewest_cases(len(claim.contrasts)):
            chance = f"which {count_cases(claim.cases)} cannot tell from chance"
        said.append(
            f"{ARMS[contrast.other]} against {ARMS[contrast.reference]}: {_gain(contrast.mean)} "
            f"points of mean Dice over the subsets (p {p_value(contrast.mean.p) or 'unknown'}), "
            f"{chance}."
        )
    heads = ((name, gaps[HEAD]) for name, gaps in claim.gaps.items() if HEAD in gaps)
    apart = ", ".join(f"{gap.distance:.3f} in the {_words(name)}" for name, gap in heads)
    if apart:
        said.append(f"Distance between modalities at the head: {apart}.")
    return [*said, PUBLISHED]


def markdown(plan: Plan, claim: Claim) -> str:
    """Write all sheets below each other."""
    lines = [f"# Distillation: {plan.folder.name}", ""]
    lines += [_item(text) for text in summary(plan, claim)]
    for sheet in sheets(plan, claim):
        lines += ["", f"## {sheet.title}", ""]
        lines += [f"| {' | '.join(sheet.heads)} |", f"|:--|{'--:|' * (len(sheet.heads) - 1)}"]
        for number, row in enumerate(sheet.rows):
            is_sum = number >= len(sheet.rows) - sheet.sums
            head = f"**{row[0]}**" if is_sum else row[0]
            lines.append(f"| {' | '.join([head, *row[1:]])} |")
        lines += [f"\n{_plain(note)}" for note in sheet.notes]
    return "\n".join(lines) + "\n"


def html(plan: Plan, claim: Claim) -> str:
    """Write one page without any other file."""
    style = files("bts_lightning.report").joinpath("report.css").read_text(encoding="utf-8")
    title = escape(f"Distillation: {plan.folder.name}")
    first, *others = (escape(text) for text in summary(plan, claim))
    body = "".join(_section(sheet) for sheet in sheets(plan, claim))
    found = "".join(f"<li>{text}</li>" for text in others)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">"
        f'<meta name="color-scheme" content="light dark"><title>{title}</title>'
        f"<style>{style}</style></head><body><header><h1>{title}</h1>"
        f'<p class="lead">{first}</p></header><main><section><ul class="findings">{found}</ul>'
        f"</section>{body}</main></body></html>\n"
    )


def _gains(claim: Claim) -> Sheet:
    titles = [f"{ARMS[c.other]} − {ARMS[c.reference]}" for c in claim.contrasts]
    lines = [[c.subsets[s] for c in claim.contrasts] for s in range(len(claim.subsets))]
    lines.append([c.mean for c in claim.contrasts])
    names = [*map(_marks, claim.subsets), f"mean over {len(claim.subsets)}"]
    rows = [
        [name, *(text for gain in line for text in (_gain(gain), p_value(gain.p)))]
        for name, line in zip(names, lines, strict=True)
    ]
    cells, averages = len(claim.subsets) * len(titles), len(titles)
    notes = [
        "Differences of the mean Dice of WT, TC and ET in points, paired by case; intervals hold "
        "95 % of 5000 bootstrap samples of cases. p: Wilcoxon's signed-rank test after Holm's "
        f"correction over the {cells} cells, and over the {averages} averages by themselves; "
        f"* marks p < {ALPHA}. Each arm was trained once: what another seed would change is not in "
        "the intervals."
    ]
    for what, family in (("cell", cells), ("average", averages)):
        if claim.cases < fewest_cases(family):
            notes.append(
                f"With {count_cases(claim.cases)} no {what} can reach p < {ALPHA}: that takes at "
                f"least {fewest_cases(family)}."
            )
    heads = [text for title in titles for text in (title, "p (Holm)")]
    return Sheet("Gain in mean Dice (points)", ["T1 T1c T2 FLAIR", *heads], rows, notes, sums=1)


def _dice(claim: Claim) -> Sheet:
    # The arms side by side and their mean first: a page shows half of the columns.
    heads = [f"{column}: {ARMS[arm]}" for column in COLUMNS for arm in claim.dice]
    lines = [[grid[s] for grid in claim.dice.values()] for s in range(len(claim.subsets))]
    lines.append([grid.mean(axis=0) for grid in claim.dice.values()])
    names = [*map(_marks, claim.subsets), f"mean over {len(claim.subsets)}"]
    rows = [
        [name, *(text for column in zip(*map(_cells, line), strict=True) for text in column)]
        for name, line in zip(names, lines, strict=True)
    ]
    return Sheet("Dice of the students (%)", ["T1 T1c T2 FLAIR", *heads], rows, sums=1)


def _teachers(plan: Plan, claim: Claim) -> Sheet:
    rows = [[_words(name), *_cells(dice)] for name, dice in claim.teachers.items()]
    note = f"All four modalities. The aligned teacher has {' '.join(plan.align)}."
    return Sheet("Dice of the teachers (%)", ["", *COLUMNS], rows, [note])


def _gaps(claim: Claim) -> Sheet:
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


def _section(sheet: Sheet) -> str:
    heads = "".join(f'<th scope="col">{escape(head)}</th>' for head in sheet.heads)
    body = []
    for number, row in enumerate(sheet.rows):
        kind = " class=sum" if number >= len(sheet.rows) - sheet.sums else ""
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        body.append(f'<tr{kind}><th scope="row">{escape(row[0])}</th>{cells}</tr>')
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in sheet.notes)
    return (
        f'<section><h2>{escape(sheet.title)}</h2><div class="scroll"><table><thead><tr>{heads}</tr>'
        f"</thead><tbody>{''.join(body)}</tbody></table></div>{notes}</section>"
    )


def _gain(gain: Gain) -> str:
    if not np.isfinite(gain.mean):
        return "–"
    ends = f" [{gain.low:.2f}, {gain.high:.2f}]" if np.isfinite(gain.low) else ""
    star = "*" if gain.p < ALPHA else ""
    return f"{gain.mean:+.2f}{star}{ends}".replace("-", "−")


def _cells(dice: np.ndarray) -> list[str]:
    """Write the columns of a row of Dice by region."""
    return [f"{value:.2f}" if np.isfinite(value) else "–" for value in (dice.mean(), *dice)]


def _marks(subset: str) -> str:
    return " ".join(dots(parse_subset(subset)))


def _words(name: str) -> str:
    return name.replace("_", " ")


def _item(text: str) -> str:
    # Without the backslash a list would begin inside the list.
    plain = _plain(text)
    return f"- \\{plain}" if plain.startswith("+") else f"- {plain}"


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
