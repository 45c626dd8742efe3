"""The evaluation in the layout of the papers: Markdown and LaTeX tables of all subsets."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bts_lightning.metrics.policies import LONGEST
from bts_lightning.metrics.table import Metric
from bts_lightning.modalities import MODALITIES, SHOWN_AS, dots, parse_subset
from bts_lightning.report.document import item, plain, table
from bts_lightning.report.facts import facts, policy, unscored
from bts_lightning.report.risk import AURC, risk_rows
from bts_lightning.report.statistics import Estimate, Means, case_means, groups, mean
from bts_lightning.report.table import SUBSET_NAMES, EvaluationTable

INTERVALS = "Intervals (95 %) are Student's t over patients, as docs/evaluation.md explains."
# Below this an interval is known to be too narrow where few regions are missed:
# `python -m tests.report.coverage`.
FEW = 75


@dataclass(frozen=True)
class Summary:
    """Hold a table with its protocol and the means of every metric."""

    table: EvaluationTable
    protocol: Mapping[str, Any]
    metrics: dict[str, Means]

    @property
    def regions(self) -> tuple[str, ...]:
        """The regions that were scored."""
        return self.table.regions

    @property
    def main(self) -> list[Metric]:
        """The metrics that stand in the tables of papers."""
        return [metric for metric in self.table.metrics if metric.is_main]

    @property
    def groups(self) -> dict[str, list[int]]:
        """Name the averages over subsets: all, with T1c, without T1c."""
        return groups(self.table.subsets)

    def rows(self, metric: str) -> Iterator[tuple[str, str | None, Estimate]]:
        """Give (title, subset or None, estimate per region) for every line of a table."""
        return self.metrics[metric].rows(self.table.subsets)


def summarise(table: EvaluationTable, protocol: Mapping[str, Any]) -> Summary:
    """Compute means and intervals of every metric."""
    metrics = {}
    for metric in table.metrics:
        grid, (low, high) = table.grid(metric.name), metric.bounds
        if math.isinf(high):
            # No distance is longer on the grid of BraTS; on a larger one, what was measured.
            high = max(LONGEST["brats"], float(np.nanmax(grid, initial=0)))
        metrics[metric.name] = case_means(grid, table.patients, (low, high))
    return Summary(table, protocol, metrics)


def means_by_name(table: EvaluationTable) -> dict[str, float]:
    """Give the means that sort runs, as measured: `dice/ET`, `hd95/mean`, `dice/ET/with_t1c`.

    They are those of `summary.md`: over subsets of the means over cases.
    """
    told = {}
    for metric in (metric for metric in table.metrics if metric.is_main):
        cells = mean(table.grid(metric.name), axis=0)  # S R
        for title, subsets in groups(table.subsets).items():
            end = "" if title.startswith("mean") else f"{title.split()[0]}_t1c"
            regions = mean(cells[subsets], axis=0)
            told[f"{metric.name}/{end or 'mean'}"] = float(mean(regions, axis=0))
            for region, value in zip(table.regions, regions, strict=True):
                told[f"{metric.name}/{region}{end and '/'}{end}"] = float(value)
    return {name: value for name, value in told.items() if math.isfinite(value)}


def markdown(summary: Summary) -> str:
    """Write summary.md: protocol, policy, the main metrics in paper layout, notes on counts."""
    protocol = summary.protocol
    lines = [f"# Evaluation of {plain(protocol.get('experiment', 'a run'))}", ""]
    lines += [item(f"{label}: {text}") for label, text in facts(protocol)]
    lines += ["", policy(protocol), "", *map(plain, notes(summary)), "", *tables(summary)]
    return "\n".join(lines)


def tables(summary: Summary) -> list[str]:
    """Write the main metrics in paper layout, and what else a reader looks up by subset."""
    lines = []
    aligned = [":-:"] * len(MODALITIES) + ["---:"] * (len(summary.regions) + 1)
    for metric in summary.main:
        titles = [*(SHOWN_AS[m] for m in MODALITIES), *summary.regions, "n"]
        rows = []
        for title, subset, line in summary.rows(metric.name):
            marks = list(dots(parse_subset(subset))) if subset else [f"**{title}**", "", "", ""]
            cells = [_cell(line, region, metric) for region in range(len(summary.regions))]
            rows.append([*marks, *cells, _count(line)])
        lines += [f"## {metric.heading}, mean and 95 % interval", ""]
        lines += [*table(titles, rows, aligned), ""]
    if "entropy" in summary.table.rows:
        lines += _risks(summary, aligned)
    return lines


def _risks(summary: Summary, aligned: list[str]) -> list[str]:
    """Write the table of risk and coverage."""
    rows = [
        [
            *(dots(parse_subset(subset)) if subset else [f"**{title}**", "", "", ""]),
            *(_number(100 * area[AURC], 2) for area in areas),
            "/".join(map(str, dict.fromkeys(cases.tolist()))),
        ]
        for title, subset, areas, cases in risk_rows(summary.table)
    ]
    titles = [*(SHOWN_AS[m] for m in MODALITIES), *summary.regions, "n"]
    said = "1 − Dice against the share of cases kept, the least entropy first; lower is better."
    head = ["## Area under risk and coverage (× 100)", "", said, ""]
    return [*head, *table(titles, rows, aligned), ""]


def latex(summary: Summary) -> str:
    """Write summary.tex: the main metrics side by side, for `\\usepackage{booktabs,amssymb}`."""
    across = len(summary.regions)
    bodies = [list(summary.rows(metric.name)) for metric in summary.main]
    heads = [metric.heading.replace("%", r"\%") for metric in summary.main]
    starts = [5 + across * i for i in range(len(bodies))]
    lines = [
        "% Needs \\usepackage{booktabs,amssymb}. Means over cases; the 95 % intervals are in "
        "summary.md.",
        *(f"% {' '.join(note.split())}" for note in [policy(summary.protocol), *notes(summary)]),
        f"\\begin{{tabular}}{{cccc{'r' * across * len(bodies)}}}",
        "\\toprule",
        " & ".join(["& & & ", *(f"\\multicolumn{{{across}}}{{c}}{{{head}}}" for head in heads)])
        + r" \\",
        " ".join(f"\\cmidrule(lr){{{start}-{start + across - 1}}}" for start in starts),
        " & ".join([*(SHOWN_AS[m] for m in MODALITIES), *summary.regions * len(bodies)]) + r" \\",
        "\\midrule",
    ]
    for row, (title, subset, _) in enumerate(bodies[0]):
        if not subset and bodies[0][row - 1][1]:
            lines.append("\\midrule")
        head = (
            " & ".join("$\\bullet$" if here else "$\\circ$" for here in parse_subset(subset))
            if subset
            else f"\\multicolumn{{4}}{{l}}{{{title}}}"
        )
        values = [
            _number(body[row][2].mean[region] * metric.factor, metric.decimals)
            for metric, body in zip(summary.main, bodies, strict=True)
            for region in range(across)
        ]
        lines.append(f"{head} & {' & '.join(values)} \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def notes(summary: Summary) -> list[str]:
    """Say in full sentences how many cases stand behind the numbers, and which do not."""
    table, without = summary.table, unscored(summary.protocol)
    shown = table.shown()
    partial = [case for case, row in zip(table.cases, shown, strict=True) if not row.all()]
    patients = len(set(table.patients))
    said = [
        f"{count_cases(len(table.cases), patients)}. {INTERVALS} A mean over subsets is the mean "
        "of their rows."
    ]
    if patients < FEW:
        said.append(
            f"With fewer than {FEW} patients an interval may be too narrow where a region is "
            "missed in few of them, because it knows only of misses that it has seen: simulated, "
            "it held the true HD95 with 25 patients in 86 % of the samples and with 10 in 57 %."
        )
    if summary.protocol.get("draw") == "brasyn":
        said.append(
            "Each case lacks one modality, by the draw of the BraSyn challenge, and stands in one "
            f"row. The mean over all cases: {_over_cases(summary)}."
        )
        partial = []
    elif len(table.subsets) < len(SUBSET_NAMES):
        said.append(f"Only {len(table.subsets)} of the {len(SUBSET_NAMES)} subsets are in it.")
    if partial:
        said.append(
            f"{count_cases(len(partial))} acquired without some modality, counted only in the "
            f"subsets that can be shown (n): {_some(partial)}."
        )
    if without:
        said.append(f"{count_cases(len(without))} without label, not scored: {_some(without)}.")
    return said


def _over_cases(summary: Summary) -> str:
    """Give the mean of each region over the rows of all cases."""
    told = []
    for metric in summary.main:
        mean = summary.table.rows.groupby("region")[metric.name].mean()
        cells = (
            f"{r} {_number(mean[r] * metric.factor, metric.decimals)}" for r in summary.regions
        )
        told.append(f"{metric.heading} {', '.join(cells)}")
    return "; ".join(told)


def count_cases(number: int, patients: int | None = None) -> str:
    """Write a number of cases, and of patients where these are fewer."""
    of = "" if patients in (None, number) else f" of {count('patient', patients)}"
    return count("case", number) + of


def count(noun: str, number: int) -> str:
    """Write a number with its noun."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _some(names: list[str], limit: int = 10) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _cell(line: Estimate, region: int, metric: Metric) -> str:
    ends = (line.mean, line.low, line.high)
    mean, low, high = (_number(end[region] * metric.factor, metric.decimals) for end in ends)
    return f"{mean} [{low}, {high}]" if np.isfinite(line.low[region]) else mean


def _count(line: Estimate) -> str:
    counts = [int(count) for count in line.count]
    return str(counts[0]) if len(set(counts)) == 1 else "/".join(map(str, counts))


def _number(value: Any, decimals: int) -> str:
    return f"{value:.{decimals}f}" if np.isfinite(value) else "–"
