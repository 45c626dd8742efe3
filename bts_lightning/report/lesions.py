"""Which lesions were found: their table in an evaluation folder, and the section of the report."""

from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bts_lightning.report.document import columns
from bts_lightning.report.grids import dot_cells, subset_table
from bts_lightning.report.sections import choice
from bts_lightning.report.summary import Summary

if TYPE_CHECKING:
    # A report measures nothing: it need not wait for the compiler.
    from bts_lightning.metrics.lesions.measure import Found

# ml: what lies between two ends is one column of the report.
ENDS = (0.0, 0.1, 1.0, 10.0, np.inf)


def lesion_row(
    case: str, subsets: Sequence[str], regions: Sequence[str], one: "Found"
) -> dict[str, object]:
    """Write down a lesion in one subset."""
    return {
        "case": case,
        "subset": subsets[one.subset],
        "region": regions[one.region],
        "mm3": one.mm3,
        "counts": int(one.counts),
        "found": int(one.is_found),
        "dice": one.dice,
        "hd95": one.hd95,
    }


def section(summary: Summary, lesions: pd.DataFrame | None) -> str:
    """Show how many lesions were found in every subset, and of which size; nothing without them."""
    if "lesions" not in summary.table.rows:
        return ""
    counts = "".join(_counts(summary, region, i == 0) for i, region in enumerate(summary.regions))
    sizes = (
        ""
        if lesions is None
        else "".join(_sizes(summary, lesions, i) for i in range(len(summary.regions)))
    )
    return (
        '<section id="lesions"><h2>Lesions</h2><p>What the challenge counts as a lesion, and '
        "whether anything was predicted for it. The table of sizes counts every lesion of the "
        "truth, also those that are too small to be scored.</p>"
        f"{choice('lesion', 'Region', {region: region for region in summary.regions})}"
        f'<div class="split even"><div>{counts}</div><div>{sizes}</div></div></section>'
    )


def _counts(summary: Summary, region: str, first: bool) -> str:
    rows = summary.table.rows
    rows = rows[rows["region"] == region]
    body = []
    for subset in summary.table.subsets:
        mine = rows[rows["subset"] == subset]
        there, found, false = (int(mine[c].sum()) for c in ("lesions", "found", "false_lesions"))
        share = f"{100 * found / there:.0f} %" if there else "–"
        cells = (str(there), str(found), share, str(false))
        body.append(_row(subset, cells))
    heads = columns(("lesions", "found", "share", "false"))
    return subset_table("lesion", region, first, f"Lesions, {region}", heads, body)


def _sizes(summary: Summary, lesions: pd.DataFrame, number: int) -> str:
    """Show the share of lesions found, by their volume."""
    region = summary.regions[number]
    mine = lesions[lesions["region"] == region]
    bins = np.searchsorted(ENDS, mine["mm3"].to_numpy(float) / 1000, side="right") - 1
    body = []
    for subset in summary.table.subsets:
        here = (mine["subset"] == subset).to_numpy()
        cells = []
        for size in range(len(ENDS) - 1):
            found = mine["found"].to_numpy(int)[here & (bins == size)]
            cells.append(f"{100 * found.mean():.0f} % of {len(found)}" if len(found) else "–")
        body.append(_row(subset, cells))
    names = [f"{low:g} to {high:g} ml" for low, high in pairwise(ENDS)]
    names[0], names[-1] = f"below {ENDS[1]:g} ml", f"{ENDS[-2]:g} ml and more"
    caption = f"Found, by volume of the lesion, {region}"
    return subset_table("lesion", region, number == 0, caption, columns(names), body)


def _row(subset: str, cells: Sequence[str]) -> str:
    return f"<tr>{dot_cells(subset)}{''.join(f'<td>{escape(c)}</td>' for c in cells)}</tr>"
