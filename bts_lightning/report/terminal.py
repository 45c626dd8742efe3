"""A comparison of evaluations, printed and written."""

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from bts_lightning.errors import UserError
from bts_lightning.metrics.table import METRICS, Metric
from bts_lightning.modalities import dots, parse_subset
from bts_lightning.report.comparison import Comparison, cell, write_comparison
from bts_lightning.report.evaluations import Evaluation, check_comparable
from bts_lightning.report.facts import LEFT_OUT, as_text
from bts_lightning.report.paired import Paired, pair, shared_patients
from bts_lightning.report.screen import Screen

# These name the runs rather than tell how they were evaluated.
_OWN = (
    *("run", "experiment", "checkpoint_sha256", "commit", "versions", "split"),
    *("created", "cases", "unscored", "subsets", "members"),
)


def compare_evaluations(
    evaluations: Sequence[Evaluation],
    out: Path | None = None,
    console: Screen | None = None,
    metrics: Sequence[str] | None = None,
    groups: Sequence[Sequence[Evaluation]] | None = None,
) -> list[Comparison]:
    """Compare evaluations in the main metrics, or in these; print, and write files below `out`.

    The first is the reference, or the first of each group.
    """
    if out is not None and out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; give a folder, for table and figures")
    pairs = [(first, other) for first, *others in groups or [evaluations] for other in others]
    for first, other in pairs:
        check_comparable(first, other)
    chosen = _choose(evaluations, metrics)
    comparisons = [_against(first, other, chosen) for first, other in pairs]
    console = console or Screen(soft_wrap=False)
    for comparison in comparisons:
        _print(comparison, console)
    if out is not None:
        page = write_comparison(out, comparisons)
        console.print(f"Tables and figures: {page}")
    return comparisons


def _choose(evaluations: Sequence[Evaluation], names: Sequence[str] | None) -> list[Metric]:
    """Take the metrics that all tables have, in the order of the table or as asked for."""
    columns = [set(evaluation.table.rows) for evaluation in evaluations]
    common = {name: m for name, m in METRICS.items() if all(name in has for has in columns)}
    for name in names or ():
        if name not in METRICS:
            raise UserError(f"--metric {name} is unknown; the metrics are {', '.join(METRICS)}")
        if name not in common:
            lacks = next(e for e, has in zip(evaluations, columns, strict=True) if name not in has)
            raise UserError(
                f"{lacks.name} was evaluated without {name}; evaluate it again"
                f"{_asked_by(METRICS[name])}, or take "
                f"{', '.join(common)}"
            )
    if names:
        return [common[name] for name in dict.fromkeys(names)]
    return [metric for metric in common.values() if metric.is_main]


def _asked_by(metric: Metric) -> str:
    if "calibration" in metric.by:
        return " with evaluation.calibration=true"
    return " with evaluation.lesions=POLICY" if metric.by else ""


def _against(reference: Evaluation, other: Evaluation, metrics: Sequence[Metric]) -> Comparison:
    keys = sorted(set(reference.protocol) | set(other.protocol))
    first, second = ({**LEFT_OUT, **evaluation.protocol} for evaluation in (reference, other))
    texts = {
        key: (as_text(first.get(key)), as_text(second.get(key))) for key in keys if key not in _OWN
    }
    return Comparison(
        reference.name,
        other.name,
        len(reference.table.cases),
        len(set(shared_patients(reference.table, other.table))),
        {key: pair_of for key, pair_of in texts.items() if pair_of[0] != pair_of[1]},
        [pair(reference.table, other.table, metric) for metric in metrics],
    )


def _print(comparison: Comparison, console: Screen) -> None:
    for paired in comparison.metrics:
        console.print(_terminal_table(comparison, paired))
    for said in comparison.remarks():
        console.print(said)


def _terminal_table(comparison: Comparison, paired: Paired) -> Table:
    title = f"{paired.metric.difference}: {comparison.title}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("T1 T1c T2 FLAIR", no_wrap=True)
    for region in paired.regions:
        table.add_column(region, justify="right")
    previous: str | None = ""
    for title, subset, line, corrected in paired.rows():
        if subset is None and previous:
            table.add_section()
        previous = subset
        # Each dot stands under the start of its modality in the heading.
        head = "{}  {}   {}  {}".format(*dots(parse_subset(subset))) if subset else title
        cells = (cell(line, corrected, r, decimals=1) for r in range(len(paired.regions)))
        table.add_row(head, *cells)
    return table
