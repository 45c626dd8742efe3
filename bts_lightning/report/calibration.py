"""Whether probabilities mean what they say: their counts, and the section of the report."""

from collections.abc import Sequence
from html import escape

import numpy as np
import pandas as pd

from bts_lightning.errors import DataError
from bts_lightning.metrics.calibration.counts import (
    AREAS,
    BAND_MM,
    BINS,
    Calibration,
    expected_error,
)
from bts_lightning.modalities import COMPLETE, subset_name
from bts_lightning.report.document import columns
from bts_lightning.report.grids import dot_cells, subset_table
from bts_lightning.report.plots import reliability
from bts_lightning.report.risk import AURC, BEST, CHANCE, risk_rows
from bts_lightning.report.sections import choice, figure
from bts_lightning.report.summary import Summary

_AREAS = {"band": f"within {BAND_MM:g} mm of the truth's surface", "all": "the whole brain"}


def bin_rows(
    case: str, subsets: Sequence[str], regions: Sequence[str], counted: Calibration
) -> list[dict[str, object]]:
    """Write down the bins of a case that hold any voxel."""
    return [
        {
            "case": case,
            "subset": subsets[s],
            "region": regions[r],
            "area": AREAS[a],
            "bin": b,
            "voxels": int(counted.bins[s, r, a, b, 0]),
            "probability": counted.bins[s, r, a, b, 1],
            "truth": int(counted.bins[s, r, a, b, 2]),
        }
        for s, r, a, b in zip(*counted.bins[..., 0].nonzero(), strict=True)
    ]


def section(summary: Summary, counted: pd.DataFrame | None) -> str:
    """Show reliability diagrams and risk against coverage; nothing without their columns."""
    if "entropy" not in summary.table.rows:
        return ""
    return (
        '<section id="calibration"><h2>Calibration</h2>'
        f"{'' if counted is None else _diagrams(summary, counted)}"
        "<h3>Risk and coverage</h3><p>Cases are taken from the most to the least confident, by the "
        "mean entropy inside what is predicted. The number is the area under the curve of the mean "
        "risk (1 − Dice) of those taken so far, times 100; small: what cases in any order would "
        "give, and the order of their Dice at best. A case in which nothing is predicted has no "
        f"entropy and takes no part.</p>{_risks(summary)}</section>"
    )


def _diagrams(summary: Summary, counted: pd.DataFrame) -> str:
    subsets, regions = summary.table.subsets, summary.regions
    chosen = {f"all {len(subsets)} subsets": list(range(len(subsets)))}
    chosen |= dict(list(summary.groups.items())[1:])
    if (complete := subset_name(COMPLETE)) in subsets:
        chosen["all four sequences"] = [subsets.index(complete)]
    sums = _sums(counted, subsets, regions)
    panels: list[str] = []
    for g, indices in enumerate(chosen.values()):
        for a, area in enumerate(AREAS):
            pooled = sums[indices, :, a].sum(axis=0)  # regions bins 3
            error = 100 * expected_error(pooled)
            shown = "".join(
                figure(
                    region,
                    reliability(pooled[r], region),
                    f"error {error[r]:.1f} %" if np.isfinite(error[r]) else "no value",
                )
                for r, region in enumerate(regions)
            )
            hidden = " hidden" if panels else ""
            panels.append(
                f'<div class="panels" data-reliability="{g}-{area}"{hidden}>{shown}</div>'
            )
    return (
        "<p>How often a voxel is in the region, against the probability that it was given. Below "
        "the diagonal the network is too sure of the region, above it too unsure. Voxels of all "
        "cases are counted together; the bars below say how many there are, as a logarithm.</p>"
        f"{choice('reliability', 'Subsets', {str(g): text for g, text in enumerate(chosen)})}"
        f"{choice('reliability', 'Voxels', _AREAS)}{''.join(panels)}"
    )


def _sums(counted: pd.DataFrame, subsets: Sequence[str], regions: Sequence[str]) -> np.ndarray:
    """Add up the counts of all cases, subsets × regions × areas × bins × 3."""
    sums = np.zeros((len(subsets), len(regions), len(AREAS), BINS, 3))
    known = {"subset": subsets, "region": regions, "area": AREAS, "bin": range(BINS)}
    places = [
        pd.Index(list(names)).get_indexer(pd.Index(counted[key])) for key, names in known.items()
    ]
    if np.min(places, initial=0) < 0:
        raise DataError(
            f"calibration.csv holds a {', '.join(known)} that its evaluation lacks; evaluate again"
        )
    np.add.at(sums, tuple(places), counted[["voxels", "probability", "truth"]].to_numpy(float))
    return sums


def _risks(summary: Summary) -> str:
    body = []
    for title, subset, areas, cases in risk_rows(summary.table):
        head = dot_cells(subset) if subset else f'<th scope="row" colspan="4">{escape(title)}</th>'
        cells = "".join(
            f"<td>{100 * area[AURC]:.1f} <small>{100 * area[CHANCE]:.1f}, {100 * area[BEST]:.1f}"
            f"</small></td><td>{n}</td>"
            if n
            else "<td>–</td><td>0</td>"
            for area, n in zip(areas, cases, strict=True)
        )
        body.append(f"<tr{'' if subset else ' class=sum'}>{head}{cells}</tr>")
    heads = columns(name for region in summary.regions for name in (region, "n"))
    caption = "Area under risk and coverage (× 100): by entropy; small: any order, best order"
    return subset_table("aurc", "all", True, caption, heads, body)
