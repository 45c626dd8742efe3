"""The end of a study: one table of means and deviations, and paired tests over all cases."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.table import Table

from bts_lightning.errors import UserError
from bts_lightning.metrics.table import Metric
from bts_lightning.modalities import REGIONS, marked
from bts_lightning.report.comparison import Comparison, cell
from bts_lightning.report.document import Document, Sheet
from bts_lightning.report.evaluations import Evaluation
from bts_lightning.report.facts import policy, read_protocol
from bts_lightning.report.published import WARNING, averages, dataset_of
from bts_lightning.report.screen import Screen
from bts_lightning.report.statistics import groups, mean
from bts_lightning.report.table import KEYS, PATIENT, VALUES, EvaluationTable
from bts_lightning.report.terminal import compare_evaluations
from bts_lightning.study.bound import bound_sheets, read_curves


@dataclass(frozen=True)
class Outcome:
    """The evaluation of one training of a study."""

    experiment: str
    seed: int
    fold: int | None
    table: EvaluationTable
    protocol: dict[str, Any]
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @classmethod
    def read(cls, experiment: str, seed: int, fold: int | None, folder: Path) -> "Outcome":
        """Read an evaluation folder, and the curves of its run."""
        table, protocol = EvaluationTable.read(folder), read_protocol(folder)
        return cls(experiment, seed, fold, table, protocol, read_curves(folder.parent.parent))

    def means(self, metric: Metric) -> np.ndarray:
        """Give the mean over cases for each subset and region, in printed units."""
        return metric.factor * mean(self.table.grid(metric.name), axis=0)


def write_study(
    folder: Path,
    results: Sequence[Outcome],
    missing: Sequence[str],
    console: Screen,
    published: str = "",
    groups: Sequence[Sequence[str]] = (),
) -> Path:
    """Print the table and the comparisons; write study.md, study.html and comparison/.

    `missing` says of each training that is not evaluated why not. `published` names the source of
    averages that stand beside ours; `groups` the experiments that are compared with their first, by
    default all.
    """
    if len({(result.table.subsets, result.table.regions) for result in results}) > 1:
        raise UserError(
            f"the trainings in {folder} were evaluated in different subsets or regions; evaluate "
            "all in the same, as with evaluation.subsets=null and one data.scheme"
        )
    said = remarks(results, missing)
    for metric in shown(results):
        console.print(_terminal_table(results, metric))
    beside = [_published(published, results)] if published else []
    for sheet in beside:
        console.print(f"{sheet.title}: {'; '.join(' '.join(row) for row in sheet.rows)}")
    for line in said:
        console.print(line)
    evaluations = {e.name: e for e in pooled(results)}
    named = groups or [list(_by_experiment(results))]
    done = [[evaluations[name] for name in group if name in evaluations] for group in named]
    # Without its reference nobody is compared.
    paired = [
        mine
        for group, mine in zip(named, done, strict=True)
        if len(mine) > 1 and mine[0].name == group[0]
    ]
    links = {}
    if paired:
        out = folder / "comparison"
        all_of_them = list({e.name: e for group in paired for e in group}.values())
        comparisons = compare_evaluations(all_of_them, out, console, groups=paired)
        gains = _gains(comparisons)
        beside.insert(0, gains)
        links = {"Paired tests": "comparison/comparison"}
        for row in gains.rows if len(comparisons) > 1 else ():
            told = ", ".join(f"{h} {c}" for h, c in zip(gains.heads[1:], row[1:], strict=True))
            console.print(f"{row[0]}: {told}")
    curves = {name: [r.curves for r in of] for name, of in _by_experiment(results).items()}
    first, *others = _sheets(results)
    sheets = [first, *beside, *bound_sheets(named, curves), *others]
    page = Document("Study", said, sheets, links).write(folder / "study")
    console.print(f"study   {page}")
    return page


def shown(results: Sequence[Outcome]) -> list[Metric]:
    """Take the main metrics that all trainings were measured in."""
    return [
        metric
        for metric in results[0].table.metrics
        if metric.is_main and all(metric in result.table.metrics for result in results)
    ]


def mean_and_deviation(results: Sequence[Outcome], metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    """Give mean and standard deviation over trainings, for each average of subsets and region.

    The first line is the mean over all subsets, the others with and without T1c, then each subset.
    """
    chosen = list(groups(results[0].table.subsets).values())
    runs = []
    for result in results:
        cells = result.means(metric)
        averages = [mean(cells[indices], axis=0) for indices in chosen]
        runs.append(np.concatenate([np.stack(averages), cells]))
    values = np.stack(runs)  # training × line × region
    deviation = np.full(values.shape[1:], np.nan)
    if len(results) > 1:
        deviation = values.std(axis=0, ddof=1)
    return mean(values, axis=0), deviation


def pooled(results: Sequence[Outcome]) -> list[Evaluation]:
    """Join the folds and average the seeds of each experiment: every case counts once.

    Only what all experiments have finished counts, so that each case meets the same seeds.
    """
    names = list(dict.fromkeys(result.experiment for result in results))
    done = [{(r.seed, r.fold) for r in results if r.experiment == name} for name in names]
    common = set.intersection(*done)
    if not common:
        return []
    return [
        _pool(n, [r for r in results if r.experiment == n and (r.seed, r.fold) in common])
        for n in names
    ]


def remarks(results: Sequence[Outcome], missing: Sequence[str] = ()) -> list[str]:
    """Say what stands behind the numbers, and what does not."""
    seeds, folds = {r.seed for r in results}, {r.fold for r in results if r.fold}
    times = f"{len(seeds)} seed{'s' * (len(seeds) != 1)}" + (
        f" × {len(folds)} folds" if folds else ""
    )
    said = [
        f"Mean ± standard deviation over trainings ({times}) of the mean over test cases. The "
        "paired tests pool the cases of all folds and average each case over the seeds."
    ]
    if missing:
        planned = len(results) + len(missing)
        said.append(
            f"Incomplete: {len(results)} of {planned} trainings are evaluated; the tests use what "
            "all experiments have in common."
        )
        said += [f"Missing: {one}" for one in missing]
    policies = {(r.protocol.get("hd95"), r.protocol.get("empty")) for r in results}
    said += [policy(results[0].protocol)] if len(policies) == 1 else []
    return said


def _pool(name: str, results: Sequence[Outcome]) -> Evaluation:
    rows = pd.concat([result.table.rows for result in results], ignore_index=True)
    values = [column for column in VALUES if column in rows]
    means = rows.groupby([*KEYS, PATIENT], sort=False)[values].mean().reset_index()
    protocols = [result.protocol for result in results]
    same = {k: v for k, v in protocols[0].items() if all(p.get(k) == v for p in protocols)}
    # Each fold has a split of its own; together they name the same one for every experiment.
    prints = sorted({str((p.get("split") or {}).get("fingerprint")) for p in protocols})
    same |= {"experiment": name, "split": {"fingerprint": " ".join(prints)}}
    return Evaluation(name, Path(name), EvaluationTable.from_rows(means, name), same)


def _by_experiment(results: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    return {
        name: [result for result in results if result.experiment == name]
        for name in dict.fromkeys(result.experiment for result in results)
    }


def _rows(results: Sequence[Outcome]) -> list[list[str]]:
    """Write the main table: an experiment a row, with the mean over subsets."""
    rows = []
    for name, runs in _by_experiment(results).items():
        cells = [name, str(len(runs))]
        for metric in shown(results):
            means, deviation = mean_and_deviation(runs, metric)
            cells += [_cell(m, d, metric) for m, d in zip(means[0], deviation[0], strict=True)]
        rows.append(cells)
    return rows


def _heads(results: Sequence[Outcome]) -> list[str]:
    regions = results[0].table.regions
    columns = [f"{region} {metric.heading}" for metric in shown(results) for region in regions]
    return ["experiment", "trainings", *columns]


def _terminal_table(results: Sequence[Outcome], metric: Metric) -> Table:
    """Show one metric: all side by side are too wide for a terminal."""
    regions = results[0].table.regions
    title = f"{metric.heading}, mean over {len(results[0].table.subsets)} subsets"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for i, heading in enumerate(["experiment", "trainings", *regions]):
        table.add_column(
            heading, justify="right" if i else "left", no_wrap=bool(i), overflow="fold"
        )
    first = 2 + len(regions) * shown(results).index(metric)
    for row in _rows(results):
        table.add_row(row[0], row[1], *row[first : first + len(regions)])
    return table


def _published(source: str, results: Sequence[Outcome]) -> Sheet:
    """Show what others printed, of the data set of the study if they printed of it."""
    rows = averages(source)
    ours = dataset_of(case for result in results for case in result.table.cases)
    same = [row for row in rows if row.dataset == ours]
    names = ", ".join(dict.fromkeys(row.dataset for row in rows))
    notes = [] if same else [f"Printed of {names}; the cases here are of {ours or 'unknown data'}."]
    cells = [
        [r.method, *(f"{r.values[name]:.2f}" for name in REGIONS), r.dataset, r.split, r.quality]
        for r in same or rows
    ]
    heads = ["method", *(f"{region} Dice %" for region in REGIONS), "data set", "split", "quality"]
    return Sheet(f"{source}, mean over 15 subsets", heads, cells, [*notes, WARNING])


def _gains(comparisons: Sequence[Comparison]) -> Sheet:
    """Write what each experiment gains against its reference, as the mean over all subsets."""
    metrics, rows = comparisons[0].metrics, []
    for comparison in comparisons:
        cells = [comparison.title]
        for paired in comparison.metrics:
            _, _, line, corrected = list(paired.rows())[len(paired.subsets)]
            cells += [cell(line, corrected, r) for r in range(len(paired.regions))]
        rows.append(cells)
    heads = ["pair", *(f"{region} {m.metric.difference}" for m in metrics for region in m.regions)]
    notes = ["Paired by case, [95 % interval]; * as in the paired tests."]
    count = len(metrics[0].subsets)
    return Sheet(f"Paired gain, mean over {count} subsets", heads, rows, notes)


def _subset_rows(results: Sequence[Outcome], metric: Metric, region: int) -> list[list[str]]:
    """Write one table of all subsets: an experiment a column."""
    subsets = results[0].table.subsets
    titles = [*groups(subsets), *map(marked, subsets)]
    columns = [mean_and_deviation(runs, metric) for runs in _by_experiment(results).values()]
    order = [*range(len(titles) - len(subsets), len(titles)), *range(len(titles) - len(subsets))]
    return [
        [titles[i], *(_cell(m[i, region], d[i, region], metric) for m, d in columns)] for i in order
    ]


def _sheets(results: Sequence[Outcome]) -> list[Sheet]:
    """Lay out the main table, then all subsets by metric and region."""
    count = len(results[0].table.subsets)
    heads = ["T1 T1c T2 FLAIR", *_by_experiment(results)]
    return [
        Sheet(f"Mean over {count} subsets", _heads(results), _rows(results)),
        *(
            Sheet(
                f"{name}, {metric.heading}, by subset", heads, _subset_rows(results, metric, region)
            )
            for metric in shown(results)
            for region, name in enumerate(results[0].table.regions)
        ),
    ]


def _cell(value: float, deviation: float, metric: Metric) -> str:
    if not np.isfinite(value):
        return "–"
    digits = metric.decimals
    return f"{value:.{digits}f}" + (f" ± {deviation:.{digits}f}" if np.isfinite(deviation) else "")
