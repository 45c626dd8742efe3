"""A comparison of runs as Markdown, as one HTML page and as figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path

import numpy as np

from bts_lightning.files import write_whole
from bts_lightning.modalities import dots, parse_subset
from bts_lightning.report.paired import ALPHA, Paired, remarks
from bts_lightning.report.plots import forest, shown
from bts_lightning.report.statistics import Estimate
from bts_lightning.report.table import REGION_NAMES


@dataclass(frozen=True)
class Comparison:
    """Hold one run against the reference: names, how the protocols differ, a table per metric."""

    reference: str
    other: str
    cases: int
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
        return [*said, *remarks(list(self.metrics), self.cases)]


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
    if not np.isfinite(line.mean[region]):
        return "–"
    star = "*" if corrected[region] < ALPHA else ""
    mean, low, high = (float(end[region]) for end in (line.mean, line.low, line.high))
    ends = f" [{low:.{decimals}f}, {high:.{decimals}f}]" if np.isfinite(low) else ""
    return f"{mean:+.{decimals}f}{star}{ends}".replace("-", "−")


def is_sure(line: Estimate, corrected: np.ndarray, region: int) -> bool:
    """Say whether a cell passed its test, or an untested average has an interval without 0."""
    if np.isfinite(corrected[region]):
        return bool(corrected[region] < ALPHA)
    return bool(line.low[region] > 0 or line.high[region] < 0)


def p_value(p: float) -> str:
    """Write a p value as papers do."""
    if not np.isfinite(p):
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _markdown(comparisons: Sequence[Comparison]) -> str:
    lines = ["# Comparison of runs", ""]
    for number, comparison in enumerate(comparisons, 1):
        lines += [f"## {_plain(comparison.title)}", ""]
        lines += [f"- {_plain(said)}" for said in comparison.remarks()]
        for paired in comparison.metrics:
            lines += ["", f"### {paired.metric.difference}, mean difference [95 % interval]", ""]
            heads = " | ".join(f"{region} | p (Holm)" for region in REGION_NAMES)
            lines += [f"| T1 T1c T2 FLAIR | {heads} | n |", f"|:--|{'--:|--:|' * 3}--:|"]
            for title, subset, line, corrected in paired.rows():
                head = " ".join(dots(parse_subset(subset))) if subset else f"**{title}**"
                cells = " | ".join(
                    f"{cell(line, corrected, r)} | {p_value(corrected[r])}"
                    for r in range(len(REGION_NAMES))
                )
                lines.append(f"| {head} | {cells} | {int(line.count.min())} |")
            lines += ["", f"![{paired.metric.name}]({paired.metric.name}-{number}.svg)"]
        lines.append("")
    return "\n".join(lines)


def _html(comparisons: Sequence[Comparison], pictures: Mapping[str, str]) -> str:
    style = files("bts_lightning.report").joinpath("report.css").read_text(encoding="utf-8")
    parts = []
    for number, comparison in enumerate(comparisons, 1):
        said = "".join(f"<li>{escape(text)}</li>" for text in comparison.remarks())
        parts.append(
            f'<section><h2>{escape(comparison.title)}</h2><ul class="findings">{said}</ul>'
        )
        for paired in comparison.metrics:
            picture = pictures[f"{paired.metric.name}-{number}.svg"]
            parts.append(
                f"<h3>{paired.metric.difference}</h3>"
                f'<div class="scroll"><figure class="wide">{picture}</figure></div>'
                f'<div class="scroll">{_html_table(paired)}</div>'
            )
        parts.append("</section>")
    names = [comparisons[0].reference, *(c.other for c in comparisons)]
    title = escape(f"Comparison of {len(names)} runs")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">"
        f'<meta name="color-scheme" content="light dark"><title>{title}</title>'
        f"<style>{style}</style></head><body><header><h1>{title}</h1>"
        f'<p class="lead">Reference: {escape(names[0])}</p></header><main>{"".join(parts)}</main>'
        "</body></html>"
    )


def _html_table(paired: Paired) -> str:
    rows = list(paired.rows())
    means = np.stack([line.mean for _, _, line, _ in rows])
    top = max([0.1, *np.abs(means[np.isfinite(means)])])
    body = []
    for title, subset, line, corrected in rows:
        name = shown(subset) if subset else title
        marks = " ".join(dots(parse_subset(subset))) if subset else escape(title)
        cells = "".join(
            _html_cell(paired, line, corrected, region, top) for region in range(len(REGION_NAMES))
        )
        body.append(
            f"<tr{'' if subset else ' class=sum'}><th scope=row title='{escape(name)}'>{marks}</th>"
            f"{cells}<td>{int(line.count.min())}</td></tr>"
        )
    heads = "".join(f'<th scope="col">{region}</th>' for region in REGION_NAMES)
    return (
        "<table><caption>Mean difference, 95 % interval, corrected p</caption><thead><tr>"
        f'<th scope="col">T1 T1c T2 FL</th>{heads}<th scope="col">n</th></tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>"
    )


def _html_cell(
    paired: Paired, line: Estimate, corrected: np.ndarray, region: int, top: float
) -> str:
    mean = line.mean[region]
    if not np.isfinite(mean):
        return "<td>–</td>"
    good = (mean >= 0) == paired.metric.more_is_better
    # What may be chance stays pale, however large.
    share = abs(mean) / top * (1.0 if is_sure(line, corrected, region) else 0.25)
    value, _, interval = cell(line, corrected, region).partition(" ")
    p = p_value(corrected[region])
    small = f"{interval}{f', p {p}' if p else ''}"
    return (
        f'<td class="heat {"up" if good else "down"}" style="--share:{share:.2f}">'
        f"{value}<small>{escape(small)}</small></td>"
    )


def _figure(paired: Paired) -> str:
    rows = list(paired.rows())
    panels = [
        (
            region,
            [
                (
                    title,
                    subset,
                    float(line.mean[r]),
                    float(line.low[r]),
                    float(line.high[r]),
                    is_sure(line, corrected, r),
                )
                for title, subset, line, corrected in rows
            ],
        )
        for r, region in enumerate(REGION_NAMES)
    ]
    return forest(panels, paired.metric.difference)


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
