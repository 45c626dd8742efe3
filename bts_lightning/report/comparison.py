"""A comparison of runs as Markdown, as one HTML page and as figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from bts_lightning.files import write_whole
from bts_lightning.modalities import marked
from bts_lightning.report.document import columns, findings, grid, heat, item, page, plain, table
from bts_lightning.report.paired import ALPHA, Paired, remarks
from bts_lightning.report.plots import forest, shown
from bts_lightning.report.statistics import Estimate


@dataclass(frozen=True)
class Comparison:
    """Hold one run against the reference: names, how the protocols differ, a table per metric."""

    reference: str
    other: str
    cases: int
    patients: int
    protocol: Mapping[str, tuple[str, str]]
    metrics: Sequence[Paired]

    @property
    def title(self) -> str:
        """Name both runs."""
        return f"{self.other} against {self.reference}"

    def remarks(self) -> list[str]:
        """Say what the numbers mean, what they cannot show and what else differs."""
        said = [paired.verdict() for paired in self.metrics]
        if self.protocol:
            differing = "; ".join(f"{k}: {a} → {b}" for k, (a, b) in self.protocol.items())
            said.append(f"The protocols differ in {differing}.")
        return [*said, *remarks(self.metrics, self.cases, self.patients)]


def write_comparison(out: Path, comparisons: Sequence[Comparison]) -> Path:
    """Write comparison.md, comparison.html and a figure per pair and metric."""
    pictures = {
        f"{paired.metric.name}-{number}.svg": _figure(paired)
        for number, comparison in enumerate(comparisons, 1)
        for paired in comparison.metrics
    }
    for name, picture in pictures.items():
        write_whole(out / name, picture)
    write_whole(out / "comparison.md", _markdown(comparisons))
    return write_whole(out / "comparison.html", _html(comparisons, pictures))


def cell(line: Estimate, corrected: np.ndarray, region: int, decimals: int = 2) -> str:
    """Write one difference with its interval, and * where it is sure."""
    return difference(*line.at(region), corrected[region] < ALPHA, decimals)


def difference(mean: float, low: float, high: float, sure: bool, decimals: int = 2) -> str:
    """Write a difference as `+1.20* [0.40, 2.00]`, or – where there is none."""
    if not np.isfinite(mean):
        return "–"
    ends = f" [{low:.{decimals}f}, {high:.{decimals}f}]" if np.isfinite(low) else ""
    return f"{mean:+.{decimals}f}{'*' if sure else ''}{ends}".replace("-", "−")


def p_value(p: float) -> str:
    """Write a p value as papers do."""
    if not np.isfinite(p):
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _markdown(comparisons: Sequence[Comparison]) -> str:
    regions = comparisons[0].metrics[0].regions
    heads = ["T1 T1c T2 FLAIR", *(h for region in regions for h in (region, "p (Holm)")), "n"]
    aligned = ["---", *["---:"] * (len(heads) - 1)]
    lines = ["# Comparison of runs", ""]
    for number, comparison in enumerate(comparisons, 1):
        lines += [f"## {plain(comparison.title)}", "", *map(item, comparison.remarks())]
        for paired in comparison.metrics:
            rows = []
            for title, subset, line, corrected in paired.rows():
                head = marked(subset) if subset else f"**{title}**"
                cells = [
                    text
                    for r in range(len(regions))
                    for text in (cell(line, corrected, r), p_value(corrected[r]))
                ]
                rows.append([head, *cells, str(line.count.min())])
            name = paired.metric.name
            lines += ["", f"### {paired.metric.difference}, mean difference [95 % interval]", ""]
            lines += [*table(heads, rows, aligned), "", f"![{name}]({name}-{number}.svg)"]
        lines.append("")
    return "\n".join(lines)


def _html(comparisons: Sequence[Comparison], pictures: Mapping[str, str]) -> str:
    parts = []
    for number, comparison in enumerate(comparisons, 1):
        parts.append(f"<section><h2>{escape(comparison.title)}</h2>")
        parts.append(findings(comparison.remarks()))
        for paired in comparison.metrics:
            picture = pictures[f"{paired.metric.name}-{number}.svg"]
            parts.append(
                f"<h3>{paired.metric.difference}</h3>"
                f'<div class="scroll"><figure class="wide">{picture}</figure></div>'
                f'<div class="scroll">{_grid(paired)}</div>'
            )
        parts.append("</section>")
    references = list(dict.fromkeys(comparison.reference for comparison in comparisons))
    title = f"Comparison of {len(comparisons) + len(references)} runs"
    return page(title, "".join(parts), f"Reference: {', '.join(references)}")


def _grid(paired: Paired) -> str:
    rows = list(paired.rows())
    means = np.stack([line.mean for _, _, line, _ in rows])
    top = max([0.1, *np.abs(means[np.isfinite(means)])])
    body = []
    for title, subset, line, corrected in rows:
        name = shown(subset) if subset else title
        marks = marked(subset) if subset else escape(title)
        cells = "".join(
            _cell(paired, line, corrected, region, top) for region in range(len(paired.regions))
        )
        body.append(
            f"<tr{'' if subset else ' class=sum'}><th scope=row title='{escape(name)}'>{marks}</th>"
            f"{cells}<td>{int(line.count.min())}</td></tr>"
        )
    heads = columns(["T1 T1c T2 FL", *paired.regions, "n"])
    return grid(heads, body, "Mean difference, 95 % interval, corrected p")


def _cell(paired: Paired, line: Estimate, corrected: np.ndarray, region: int, top: float) -> str:
    mean = line.mean[region]
    if not np.isfinite(mean):
        return "<td>–</td>"
    # What may be chance stays pale, however large.
    share = abs(mean) / top * (1.0 if corrected[region] < ALPHA else 0.25)
    value, _, interval = cell(line, corrected, region).partition(" ")
    p = p_value(corrected[region])
    is_bad = (mean >= 0) != paired.metric.more_is_better
    return heat(value, f"{interval}{f', p {p}' if p else ''}", share, is_bad)


def _figure(paired: Paired) -> str:
    rows = list(paired.rows())
    panels = [
        (
            region,
            [
                (title, subset, *line.at(r), bool(corrected[r] < ALPHA))
                for title, subset, line, corrected in rows
            ],
        )
        for r, region in enumerate(paired.regions)
    ]
    return forest(panels, paired.metric.difference)
