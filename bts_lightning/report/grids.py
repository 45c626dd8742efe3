"""The tables of the page: heat maps of all subsets, gains, published numbers beside ours."""

from collections.abc import Sequence
from html import escape

import numpy as np

from bts_lightning.metrics.table import METRICS, Metric
from bts_lightning.modalities import MODALITIES, REGIONS, SHOWN_AS, parse_subset
from bts_lightning.report.document import columns, grid, heat
from bts_lightning.report.plots import shown, signed
from bts_lightning.report.published import MEAN, Published
from bts_lightning.report.shapley import one_more
from bts_lightning.report.statistics import Estimate, case_means
from bts_lightning.report.summary import Summary, count_cases
from bts_lightning.report.table import SUBSET_NAMES

_HEADS = "".join(
    f'<th scope="col" class="m" title="{SHOWN_AS[m]}">{name}</th>'
    for m, name in zip(MODALITIES, ("T1", "T1c", "T2", "FL"), strict=True)
)


def heat_maps(summary: Summary) -> str:
    """Show one table per metric, coloured from its worst to its best mean."""
    return "".join(
        _heat_map(summary, metric, i == 0) for i, metric in enumerate(summary.table.metrics)
    )


def gain_tables(summary: Summary) -> str:
    """Show the mean gain from one more sequence, a table per region."""
    gains = one_more(summary.table)
    if not gains:
        return "<p>No two subsets of this table differ by one sequence.</p>"
    values = 100 * np.stack([gain.values for gain in gains], axis=1)
    cells = case_means(values, summary.table.patients).cells()
    place = {(gain.subset, gain.modality): i for i, gain in enumerate(gains)}
    starts = [name for name in summary.table.subsets if any(g.subset == name for g in gains)]
    top = max([0.1, *np.abs(cells.mean[np.isfinite(cells.mean)])])
    tables = []
    for region, region_name in enumerate(summary.regions):
        body = []
        for name in starts:
            row = [dot_cells(name)]
            for modality in MODALITIES:
                if (name, modality) in place:
                    row.append(_gain(cells, place[name, modality], region, top))
                else:
                    row.append('<td class="none"></td>')
            body.append(f"<tr>{''.join(row)}</tr>")
        heads = columns(f"+ {SHOWN_AS[m]}" for m in MODALITIES)
        caption = f"Mean gain in points of Dice, {region_name}"
        tables.append(subset_table("gain", region_name, region == 0, caption, heads, body))
    return "".join(tables)


def published_tables(
    summary: Summary, published: Sequence[Published]
) -> tuple[dict[str, str], str]:
    """Show our means beside the published ones, a table per metric and region.

    Gives what there is to choose from, and the tables.
    """
    found = {}
    for (metric, region), (name, ours) in _ours(summary).items():
        tables = [t for t in published if (t.metric, t.region) == (metric, region)]
        # Averages alone come last.
        tables.sort(key=lambda table: bool(np.isnan(table.values[:-1]).all()))
        if tables:
            found[f"{metric}-{region}"] = (name, ours, tables)
    parts = []
    for number, (key, (name, ours, tables)) in enumerate(found.items()):
        sources = list(dict.fromkeys((table.source, table.split) for table in tables))
        heads = '<th scope="col" class="ours">this run</th>' + "".join(
            f'<th scope="col">{escape(table.method)}{"" if table.quality == "ok" else " ?"}'
            f"<sup>{sources.index((table.source, table.split)) + 1}</sup></th>"
            for table in tables
        )
        lines = [ours, *(table.values[:-1] for table in tables)]
        body = [
            _published_row(dot_cells(subset), [float(line[i]) for line in lines])
            for i, subset in enumerate(SUBSET_NAMES)
        ]
        ends = [float(ours.mean()), *(table.of(MEAN) for table in tables)]
        body.append(_published_row('<th scope="row" colspan="4">mean</th>', ends, "sum"))
        caption = f"{name}, published on {tables[0].dataset}; ?: suspicious"
        part = subset_table("published", key, number == 0, caption, heads, body)
        notes = "".join(
            f"<li value={i}>{escape(source)}; split: {escape(split)}{_doubts(tables, source)}</li>"
            for i, (source, split) in enumerate(sources, 1)
        )
        hidden = "" if number == 0 else " hidden"
        parts.append(f'{part}<ol class="note" data-published="{key}"{hidden}>{notes}</ol>')
    return {key: name for key, (name, _, _) in found.items()}, "".join(parts)


def _ours(summary: Summary) -> dict[tuple[str, str], tuple[str, np.ndarray]]:
    """Give our means over cases in the printed units, by what others call metric and region."""
    kinds = [("dice", region, "dice", region) for region in REGIONS]
    kinds += [("dice", "ETpp", "dice_pp", "ET")]
    kinds += [("hd95", region, "hd95", region) for region in REGIONS]
    found = {}
    for metric, name, column, region in kinds:
        if column not in summary.metrics or region not in summary.regions:
            continue
        row = METRICS[column]
        ours = np.full(len(SUBSET_NAMES), np.nan)
        places = [SUBSET_NAMES.index(subset) for subset in summary.table.subsets]
        means = summary.metrics[column].mean[:, summary.regions.index(region)]
        ours[places] = row.factor * means
        heading = row.heading.replace(", ETpp", "")
        found[metric, name] = (f"{heading}, {name}", ours)
    return found


def _doubts(tables: Sequence[Published], source: str) -> str:
    """Say why tables of a source are suspicious or corrupt."""
    said = [
        f"{table.method} {table.quality}: {table.note}"
        for table in tables
        if table.source == source and table.quality != "ok"
    ]
    return "".join(f"<br>{escape(text)}" for text in said)


def _heat_map(summary: Summary, metric: Metric, first: bool) -> str:
    rows = list(summary.rows(metric.name))
    means = np.array([line.mean for _, _, line in rows])
    counts = {int(count) for _, _, line in rows for count in line.count}
    body = []
    for title, subset, line in rows:
        head = dot_cells(subset) if subset else f'<th scope="row" colspan="4">{escape(title)}</th>'
        cells = "".join(
            _heat(line, region, metric, means) for region in range(len(summary.regions))
        )
        count = f"<td>{_counts(line)}</td>" if len(counts) > 1 else ""
        body.append(f"<tr{'' if subset else ' class=sum'}>{head}{cells}{count}</tr>")
    heads = columns([*summary.regions, *(["n"] if len(counts) > 1 else [])])
    everywhere = f", {count_cases(counts.pop())}" if len(counts) == 1 else ""
    caption = f"{metric.heading}: mean and 95 % interval{everywhere}"
    return subset_table("metric", metric.name, first, caption, heads, body)


def _counts(line: Estimate) -> str:
    counts = sorted({int(count) for count in line.count}, reverse=True)
    return "–".join(str(count) for count in (counts[0], counts[-1])[: len(counts)])


def _share(means: np.ndarray, value: float, more_is_better: bool) -> float:
    """Place a mean between the worst (0) and the best (1) of its table."""
    finite = means[np.isfinite(means)]
    low, high = finite.min(), finite.max()
    share = (value - low) / ((high - low) or 1.0)
    return float(share if more_is_better else 1 - share)


def _heat(line: Estimate, region: int, metric: Metric, means: np.ndarray) -> str:
    if not np.isfinite(line.mean[region]):
        return "<td>–</td>"
    share = _share(means, line.mean[region], metric.more_is_better)
    value = f"{metric.factor * line.mean[region]:.1f}"
    return heat(value, between(line, region, metric.factor, 1), share)


def _gain(cells: Estimate, number: int, region: int, top: float) -> str:
    mean = cells.mean[number, region]
    if not np.isfinite(mean):
        return "<td>–</td>"
    line = Estimate(*(end[number] for end in (cells.mean, cells.low, cells.high, cells.count)))
    return heat(signed(mean), between(line, region, 1.0, 1), abs(mean) / top, mean < 0)


def between(line: Estimate, region: int, factor: float, decimals: int) -> str:
    """Write the ends of an interval, or nothing where there is none."""
    low, high = factor * line.low[region], factor * line.high[region]
    if not np.isfinite(low):
        return ""
    joint = " to " if min(low, high) < 0 else "–"
    return f"{low:.{decimals}f}{joint}{high:.{decimals}f}".replace("-", "−")


def subset_table(
    group: str, part: str, first: bool, caption: str, heads: str, body: Sequence[str]
) -> str:
    """Show one part of a group, of which the page shows one at a time."""
    hidden = "" if first else " hidden"
    shown = grid(_HEADS + heads, body, caption)
    return f'<div class="scroll" data-{group}="{part}"{hidden}>{shown}</div>'


def dot_cells(subset: str) -> str:
    """Write a subset as four cells of ● and ○ that are read out as its modalities."""
    present = parse_subset(subset)
    first = (
        f'<th scope="row" class="m" aria-label="{shown(subset)}">{"●" if present[0] else "○"}</th>'
    )
    return first + "".join(f'<td class="m">{"●" if here else "○"}</td>' for here in present[1:])


def _published_row(head: str, values: Sequence[float], style: str = "") -> str:
    cells = "".join(
        f'<td class="{"ours" if i == 0 else ""}">{"–" if np.isnan(value) else f"{value:.2f}"}</td>'
        for i, value in enumerate(values)
    )
    return f'<tr class="{style}">{head}{cells}</tr>'
