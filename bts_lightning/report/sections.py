"""The parts of the page that need no script: facts, tables and plots as HTML."""

from collections.abc import Sequence
from html import escape

import numpy as np

from bts_lightning.modalities import COMPLETE, REGION_WORDS, subset_name
from bts_lightning.report.facts import facts
from bts_lightning.report.grids import between
from bts_lightning.report.plots import COLOURS, bars, distributions, ranges
from bts_lightning.report.shapley import case_values
from bts_lightning.report.statistics import Estimate, case_means
from bts_lightning.report.summary import Summary, count_cases


def facts_list(summary: Summary) -> str:
    """Show how the evaluation was made."""
    pairs = facts(summary.protocol)
    return "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in pairs)


def cards(summary: Summary) -> str:
    """Show per region the complete set, the mean over subsets and what is left without T1c."""
    dice = summary.metrics["dice"]
    lines: list[tuple[str, Estimate]] = []
    complete = subset_name(COMPLETE)
    if complete in summary.table.subsets:
        lines.append(("all four sequences", dice.over([summary.table.subsets.index(complete)])))
    lines += [(title, dice.over(indices)) for title, indices in summary.groups.items()]
    return "".join(_card(region, name, lines) for region, name in enumerate(summary.regions))


def distribution_plots(summary: Summary) -> str:
    """Show the Dice of every case by subset, a plot per region."""
    dice = 100 * summary.table.grid("dice")
    return "".join(
        figure(region, distributions(dice[..., i], summary.table.subsets, region))
        for i, region in enumerate(summary.regions)
    )


def t1c_plot(summary: Summary) -> str:
    """Show the averages over all subsets, those with T1c and those without, with intervals."""
    rows, ends = [], []
    for i, region in enumerate(summary.regions):
        for title, indices in summary.groups.items():
            line = summary.metrics["dice"].over(indices)
            mean, low, high = (100 * end for end in line.at(i))
            if np.isfinite(mean):
                rows.append((region, title, mean, low, high, COLOURS[region]))
                ends += [end for end in (mean, low, high) if np.isfinite(end)]
    if not rows:
        return ""
    return f"<figure class=ranges>{ranges(rows, np.array([min(ends), max(ends)]))}</figure>"


def shapley_plots(summary: Summary) -> str:
    """Show the mean Shapley value of every modality, or say why there is none."""
    cases, values = case_values(summary.table)
    if not cases:
        return "<p>No case has been scored with all 15 subsets: there is no exact value.</p>"
    patient = dict(zip(summary.table.cases, summary.table.patients, strict=True))
    cells = case_means(100 * values, [patient[case] for case in cases]).cells()
    limit = max([1.0, *cells.high[np.isfinite(cells.high)]])
    plots = "".join(
        figure(
            region,
            bars(cells.mean[i], cells.low[i], cells.high[i], region, limit),
            count_cases(int(cells.count[i].min())),
        )
        for i, region in enumerate(summary.regions)
        if np.isfinite(cells.mean[i]).all()
    )
    left = len(summary.table.cases) - len(cases)
    verb = "has" if left == 1 else "have"
    note = f"{count_cases(left)} {verb} no value, not having all 15 subsets." if left else ""
    return f'<div class="panels">{plots}</div><p class="note">{note}</p>'


def choice(group: str, name: str, options: dict[str, str]) -> str:
    """Make a row of buttons, one of them pressed, that choose between parts of the page."""
    buttons = "".join(
        f'<label><input type="radio" name="{group}-{name}" value="{escape(value)}" '
        f'data-group="{group}"{" checked" if i == 0 else ""}><span>{escape(text)}</span></label>'
        for i, (value, text) in enumerate(options.items())
    )
    return f'<div class="choice" role="radiogroup" aria-label="{escape(name)}">{buttons}</div>'


def figure(region: str, picture: str, note: str = "") -> str:
    """Put a picture of a region under its name."""
    return (
        f"<figure><figcaption><b>{region}</b> {REGION_WORDS[region]}{', ' + note if note else ''}"
        f"</figcaption>{picture}</figure>"
    )


def _card(region: int, name: str, lines: Sequence[tuple[str, Estimate]]) -> str:
    items = "".join(
        f"<div><dt>{escape(title)}</dt><dd><b>{100 * line.mean[region]:.1f}</b>"
        f"<small>{between(line, region, 100.0, 1)}</small></dd></div>"
        for title, line in lines
        if np.isfinite(line.mean[region])
    )
    return (
        f'<article style="--region:{COLOURS[name]}"><h3>{name} '
        f"<small>{REGION_WORDS[name]}</small></h3><dl>{items}</dl></article>"
    )
