"""report.html: one file with its style, script, numbers and pictures inside."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from string import Template
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from bts_lightning.errors import DataError, did_you_mean
from bts_lightning.metrics.table import VOLUMES
from bts_lightning.modalities import (
    COMPLETE,
    MODALITIES,
    REGION_WORDS,
    SCHEMES,
    SHOWN_AS,
    subset_name,
)
from bts_lightning.report import calibration, grids, importance, lesions, sections, see
from bts_lightning.report.document import asset, shell
from bts_lightning.report.embed import embed
from bts_lightning.report.facts import brief, policy
from bts_lightning.report.plots import COLOURS, shown, signed
from bts_lightning.report.published import WARNING, dataset_of, select
from bts_lightning.report.shapley import case_values
from bts_lightning.report.slices import CaseSlices
from bts_lightning.report.summary import Summary, count_cases, notes


def page(
    summary: Summary,
    slices: Sequence[CaseSlices],
    beside: Mapping[str, pd.DataFrame] = MappingProxyType({}),
    *,
    dataset: str = "",
    corrupt: bool = False,
    view: bytes | None = None,
) -> str:
    """Fill the template: the result needs no network and no other file.

    Args:
        summary: the table.
        slices: pictures of some cases.
        beside: what an evaluation wrote beside its table: lesions, calibration, importance.
        dataset: whose published numbers stand beside ours; what the names of cases tell if empty.
        corrupt: also show the tables that are known to be wrong.
        view: a picture that `bts view` has made, PNG.
    """
    dataset = dataset or dataset_of(summary.table.cases) or ""
    known = select(dataset=dataset, corrupt=corrupt) if dataset else []
    choices, published = grids.published_tables(summary, known)
    embedded = embed(slices)
    regions = {region: region for region in summary.regions}
    title = str(summary.protocol.get("experiment") or "Evaluation")
    parts = {
        "title": escape(title),
        "lead": escape(_lead(summary)),
        "cards": sections.cards(summary),
        "findings": "".join(f"<li>{escape(said)}</li>" for said in findings(summary)),
        "choose_metric": sections.choice(
            "metric", "Metric", {metric.name: metric.heading for metric in summary.table.metrics}
        ),
        "heat_maps": grids.heat_maps(summary),
        "distributions": sections.distribution_plots(summary),
        "t1c": sections.t1c_plot(summary),
        "shapley": sections.shapley_plots(summary),
        "choose_gain": sections.choice("gain", "Region", regions),
        "gains": grids.gain_tables(summary),
        "links": "".join(
            f'<a href="#{name}">{name.capitalize()}</a>'
            for name, column in (("lesions", "lesions"), ("calibration", "entropy"))
            if column in summary.table.rows
        )
        + ('<a href="#weights">Weights</a>' if "importance" in beside else ""),
        "lesions": lesions.section(summary, beside.get("lesions")),
        "calibration": calibration.section(summary, beside.get("calibration")),
        "importance": importance.section(
            summary, beside.get("importance"), [one.case for one in slices]
        ),
        "see": see.section(summary, view),
        "pictures": f"{count_cases(len(embedded))} with pictures in this file.",
        "metric_heads": "".join(
            f'<th scope="col">{escape(metric.heading)}</th>' for metric in summary.main
        ),
        "region_heads": "".join(f'<th scope="col">{region}</th>' for region in regions),
        "legend": "".join(
            f'<span class="key {region.lower()}" style="--key:{COLOURS[region]}">{region} '
            f"{REGION_WORDS[region]}</span>"
            for region in regions
        ),
        "brief": escape(brief(summary.protocol)),
        "warning": escape(WARNING).replace("`bts compare`", "<code>bts compare</code>"),
        "choose_published": sections.choice("published", "Published", choices) if choices else "",
        "published": published or f'<p class="note">{escape(_nothing_published(dataset))}</p>',
        "facts": sections.facts_list(summary),
        "policy": escape(policy(summary.protocol)),
        "notes": "".join(f'<p class="note">{escape(note)}</p>' for note in notes(summary)),
        "script": asset("report.js"),
        "data": _script_data(summary, embedded),
    }
    body = Template(asset("report.html")).substitute(parts)
    return shell(f"{title}: segmentation with missing sequences", body, with_scripts=True)


def findings(summary: Summary) -> list[str]:
    """Say the main results in full sentences."""
    subsets, regions = summary.table.subsets, summary.regions
    mean = 100 * summary.metrics["dice"].mean
    # A region without any value (policy `nan`, no such tumour) has nothing to say.
    there = [r for r in range(len(regions)) if np.isfinite(mean[:, r]).all()]
    groups = list(summary.groups.values())
    single = [i for i, name in enumerate(subsets) if "+" not in name]
    complete = subset_name(COMPLETE)
    gaps, best, losses = [], [], []
    for r in there:
        dice, region = mean[:, r], regions[r]
        if len(groups) == 3:
            gaps.append(f"{region} {signed(dice[groups[1]].mean() - dice[groups[2]].mean())}")
        if len(single) > 1:
            alone = max(single, key=lambda i: dice[i])
            best.append(f"{shown(subsets[alone])} for {region} ({dice[alone]:.1f})")
        if complete in subsets and len(subsets) > 1:
            worst = int(dice.argmin())
            loss = dice[worst] - dice[subsets.index(complete)]
            if loss < 0:
                losses.append(f"{region} {signed(loss)} ({shown(subsets[worst])} only)")
    sentences = {
        "Subsets with T1c against those without, mean Dice in points": gaps,
        "The best single sequence": best,
        "The worst subset against all four sequences, in points of Dice": losses,
    }
    return [f"{start}: {', '.join(said)}." for start, said in sentences.items() if said]


def _nothing_published(dataset: str) -> str:
    if dataset:
        return f"No table of {dataset} has the regions of this run; `bts published` lists all."
    return (
        "The names of the cases do not tell whose published numbers belong here. "
        "`bts report RUN --published brats2020` says it; `bts published` lists all."
    )


def _lead(summary: Summary) -> str:
    network = summary.protocol.get("network")
    split = summary.protocol.get("split")
    name = split.get("name") if isinstance(split, dict) else split
    return (
        f"{network or 'The network'} on {count_cases(len(summary.table.cases))}"
        f"{f' of split “{name}”' if name else ''}, scored with "
        f"{len(summary.table.subsets)} of the 15 subsets of T1, T1c, T2 and FLAIR."
    )


def _script_data(summary: Summary, slices: dict[str, dict[str, Any]]) -> str:
    table = summary.table
    scored = table.shown()
    main = [metric.name for metric in summary.main]
    grid = {column: table.grid(column) for column in (*main, *VOLUMES)}
    with_all, values = case_values(table)
    shares = dict(zip(with_all, 100 * values, strict=True))
    # The same patient has the same truth in every subset: the first row that is there tells it.
    truths = [case[scored[i]][0] for i, case in enumerate(grid["true_ml"])]
    cases = [
        {
            "name": name,
            **{metric: _lines(grid[metric][i], scored[i], 4) for metric in main},
            "predicted": _lines(grid["predicted_ml"][i], scored[i], 2),
            "truth": _numbers(truths[i], 2),
            "shapley": [_numbers(row, 2) for row in shares[name]] if name in shares else None,
        }
        for i, name in enumerate(table.cases)
    ]
    data = {
        "modalities": {modality: SHOWN_AS[modality] for modality in MODALITIES},
        "colours": {region: COLOURS[region] for region in table.regions},
        "inside": _insides(summary),
        "metrics": {metric.name: metric.factor for metric in summary.main},
        "subsets": table.subsets,
        "first": next((name for name in slices if name in table.cases), table.cases[0]),
        "cases": cases,
        "slices": slices,
    }
    # A case named </script> must not end the script.
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _insides(summary: Summary) -> dict[str, list[int]]:
    """Say of each region which of the values of a label map belong to it."""
    name = str(summary.protocol.get("scheme", "brats"))
    if name not in SCHEMES:
        raise DataError(f"protocol.json: scheme is {name!r}; {did_you_mean(name, SCHEMES)}")
    scheme = SCHEMES[name]
    return {
        region: [int(label in labels) for label in range(scheme.classes)]
        for region, labels in scheme.regions.items()
    }


def _lines(rows: np.ndarray, shown: np.ndarray, decimals: int) -> list[list[float | None] | None]:
    return [
        _numbers(row, decimals) if here else None for row, here in zip(rows, shown, strict=True)
    ]


def _numbers(values: np.ndarray, decimals: int) -> list[float | None]:
    return [round(float(value), decimals) if np.isfinite(value) else None for value in values]
