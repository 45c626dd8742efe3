"""What a network weighs against what it gains: rows of a table, and a section of the report."""

from collections.abc import Mapping, Sequence
from html import escape
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bts_lightning.errors import DataError
from bts_lightning.modalities import COMPLETE, MODALITIES, SHOWN_AS, parse_subset, subset_name
from bts_lightning.report.plots import bars, gates
from bts_lightning.report.sections import choice, figure
from bts_lightning.report.shapley import case_values
from bts_lightning.report.statistics import Estimate, case_means
from bts_lightning.report.summary import Summary, count_cases

# Gates of experts that see all modalities at once tell nothing of one against another.
OF_ALL = "global gates"
# Cases whose gates are drawn; all of them stand in the table.
DRAWN = 12


def weight_rows(
    case: str,
    subsets: Sequence[str],
    regions: Sequence[str],
    means: Mapping[tuple[str, int], NDArray[np.float64]],
) -> list[dict[str, object]]:
    """Write down the weights of a case, S×R×M×E by kind and level; expert 0 is none."""
    return [
        {
            "case": case,
            "subset": subset,
            "region": region,
            "kind": kind,
            "level": level,
            "expert": e + 1 if weights.shape[3] > 1 else 0,
            **dict(zip(MODALITIES, (round(float(w), 6) for w in weights[s, r, :, e]), strict=True)),
        }
        for (kind, level), weights in means.items()
        for s, subset in enumerate(subsets)
        for r, region in enumerate(regions)
        for e in range(weights.shape[3])
    ]


def section(summary: Summary, told: pd.DataFrame | None, drawn: Sequence[str]) -> str:
    """Show weights above gains, and in words where they disagree; nothing where none were asked.

    The cases `drawn` are those of the picture of experts.
    """
    if told is None:
        return ""
    start = '<section id="weights"><h2>What the network weighs</h2>'
    if told.empty:
        name = escape(str(summary.protocol.get("network", "The network")))
        return f"{start}<p>{name} does not weigh its modalities against each other.</p></section>"
    grids = _grids(summary, told)
    compared = {key: grid.sum(axis=4) for key, grid in grids.items() if key[0] != OF_ALL}
    complete = subset_name(COMPLETE)
    where = (
        "in the subset of all four sequences"
        if complete in summary.table.subsets
        else "over the subsets that have the sequence"
    )
    panels = "".join(
        f'<div data-weight="{i}"{" hidden" if i else ""}>{_panel(summary, _shown(summary, grid))}'
        "</div>"
        for i, grid in enumerate(compared.values())
    )
    options = {str(i): f"{kind}, level {level}" for i, (kind, level) in enumerate(compared)}
    return (
        f"{start}<p>Mean weight of a sequence over the voxels of a region in the truth, {where}, "
        "in percent, with its 95 % interval over patients; level 0 is the finest. Weights of a "
        "softmax add up to 100, gates need not; where experts have gates, theirs are added up. A "
        "case without the region has no weight. Below it stands what the sequence is worth.</p>"
        f"{choice('weight', 'Weights', options)}{panels}{_experts(grids, summary, drawn)}"
        "</section>"
    )


def _grids(summary: Summary, told: pd.DataFrame) -> dict[tuple[str, int], np.ndarray]:
    """Lay out case × subset × region × modality × expert, by kind and level."""
    table = summary.table
    known = {"case": table.cases, "subset": table.subsets, "region": table.regions}
    places = {
        key: pd.Index(list(names)).get_indexer(pd.Index(told[key])) for key, names in known.items()
    }
    if min(place.min() for place in places.values()) < 0:
        raise DataError(
            f"importance.csv holds a {', '.join(known)} that its evaluation lacks; evaluate again"
        )
    grids = {}
    for rows in told.groupby(["kind", "level"], sort=False).indices.values():
        experts = np.maximum(told["expert"].to_numpy(int)[rows] - 1, 0)
        shape = [*map(len, known.values()), len(MODALITIES), experts.max() + 1]
        grid = np.full(shape, np.nan)
        index = tuple(places[key][rows] for key in known)
        grid[(*index, slice(None), experts)] = told[list(MODALITIES)].to_numpy(float)[rows]
        kind, level = told["kind"].iloc[rows[0]], told["level"].iloc[rows[0]]
        grids[str(kind), int(level)] = grid
    return grids


def _shown(summary: Summary, grid: np.ndarray) -> np.ndarray:
    """Take case × region × modality … of all four, or averaged over where a modality is there."""
    subsets = summary.table.subsets
    if (complete := subset_name(COMPLETE)) in subsets:
        taken: np.ndarray = grid[:, subsets.index(complete)]
        return taken
    there = np.array([parse_subset(name) for name in subsets])  # subset modality
    there = there.reshape(1, *there.shape[:1], 1, there.shape[1], *[1] * (grid.ndim - 4))
    kept = np.where(there & np.isfinite(grid), grid, 0).sum(axis=1)
    count = (there & np.isfinite(grid)).sum(axis=1)
    return np.divide(kept, count, out=np.full(kept.shape, np.nan), where=count > 0)


def _panel(summary: Summary, weights: np.ndarray) -> str:
    table = summary.table
    cells = case_means(100 * weights, table.patients).cells()
    limit = float(np.nanmax([1.0, *cells.high.flat, *cells.mean.flat]))
    with_all, values = case_values(table)
    gains = 100 * values
    patient = dict(zip(table.cases, table.patients, strict=True))
    patients = [patient[case] for case in with_all]
    worth = case_means(gains, patients).cells() if with_all else None
    ends = [] if worth is None else [*worth.high.flat, *worth.mean.flat]
    top = float(np.nanmax([1.0, *ends]))
    shown = []
    for r, region in enumerate(summary.regions):
        if not np.isfinite(cells.mean[r]).all():
            shown.append(figure(region, "<p>–</p>", "no case has it"))
            continue
        picture = "<small>weight (%)</small>"
        picture += bars(cells.mean[r], cells.low[r], cells.high[r], region, limit)
        if worth is not None and np.isfinite(worth.mean[r]).all():
            picture += "<small>Shapley value (points of Dice)</small>"
            picture += bars(worth.mean[r], worth.low[r], worth.high[r], region, top)
        shown.append(figure(region, picture, count_cases(int(cells.count[r].min()))))
    said = disagreements(summary.regions, 100 * weights, table.patients, gains, patients)
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in said)
    return f'<div class="panels">{"".join(shown)}</div><ul class="findings">{items}</ul>'


def disagreements(
    regions: Sequence[str],
    weights: np.ndarray,
    patients: Sequence[str],
    gains: np.ndarray,
    patients_with_all: Sequence[str],
) -> list[str]:
    """Say of each region which pairs of modalities weights and Shapley values rank otherwise.

    Args:
        regions: their names.
        weights: case × region × modality, in percent.
        patients: of these cases.
        gains: case × region × modality, in points, of the cases with all subsets.
        patients_with_all: of those.
    """
    if not len(gains):
        return ["Shapley values, to compare with, need a case that shows all 15 subsets."]
    weighs, gained = _pairs(weights, patients), _pairs(gains, patients_with_all)
    means = [case_means(v, p).mean for v, p in ((weights, patients), (gains, patients_with_all))]
    said = []
    for r, region in enumerate(regions):
        if not all(np.isfinite(mean[r]).all() for mean in means):
            continue
        told = []
        for k, pair in enumerate(combinations(range(len(MODALITIES)), 2)):
            if weighs.mean[r, k] * gained.mean[r, k] >= 0:
                continue
            a, b = pair if weighs.mean[r, k] > 0 else pair[::-1]
            sure = all(each.low[r, k] * each.high[r, k] > 0 for each in (weighs, gained))
            (wa, wb), (ga, gb) = ((mean[r, a], mean[r, b]) for mean in means)
            told.append(
                f"{SHOWN_AS[MODALITIES[a]]} weighs more than {SHOWN_AS[MODALITIES[b]]} "
                f"({wa:.1f} % against {wb:.1f} %) and gains less ({ga:.1f} against {gb:.1f} points)"
                f"{'*' if sure else ''}"
            )
        agree = "weights and Shapley values rank the sequences alike."
        said.append(f"{region}: {'; '.join(told) + '.' if told else agree}".replace("-", "−"))
    return [*said, "* marks where both 95 % intervals of the difference leave out 0."]


def _pairs(values: np.ndarray, patients: Sequence[str]) -> Estimate:
    """Subtract, paired by case, each second modality from each first: region × pair."""
    pairs = list(combinations(range(len(MODALITIES)), 2))
    apart = np.stack([values[..., a] - values[..., b] for a, b in pairs], axis=-1)
    return case_means(apart, patients).cells()


def _experts(
    grids: Mapping[tuple[str, int], np.ndarray], summary: Summary, drawn: Sequence[str]
) -> str:
    """Draw the gates of each expert for some cases and the mean of all."""
    several = {key: grid for key, grid in grids.items() if grid.shape[4] > 1}
    if not several:
        return ""
    table = summary.table
    chosen = [case for case in drawn if case in table.cases] or list(table.cases)
    rows = [table.cases.index(case) for case in chosen[:DRAWN]]
    panels = []
    for i, region in enumerate(summary.regions):
        pictures = []
        for (kind, level), grid in several.items():
            values = _shown(summary, grid)[:, i]  # case modality expert
            mean = case_means(values, table.patients).mean
            heads = [SHOWN_AS[m] for m in MODALITIES]
            if kind == OF_ALL:
                values, mean, heads = values[:, :1], mean[:1], ["all together"]
            lines = [(f"mean of {len(values)}", mean)]
            lines += [(table.cases[row], values[row]) for row in rows]
            pictures.append(
                f"<figure><figcaption><b>{escape(kind)}</b> level {level}</figcaption>"
                f"{gates(lines, heads, region)}</figure>"
            )
        hidden = " hidden" if i else ""
        panels.append(
            f'<div class="panels" data-gates="{region}"{hidden}>{"".join(pictures)}</div>'
        )
    return (
        "<h3>Experts, patient by patient</h3><p>A line is a patient, a square the mean gate of one "
        "expert: the deeper, the more its answer counts. Experts 1, 2, … from left to right; each "
        "sequence has experts of its own at each level, so numbers mean nothing across them. All "
        "patients are in importance.csv.</p>"
        f"{choice('gates', 'Region', {r: r for r in summary.regions})}{''.join(panels)}"
    )
