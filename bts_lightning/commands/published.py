"""`bts published`: what papers and repositories printed, by data set, never pooled."""

import argparse
import csv
import io
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from bts_lightning.errors import Parser, UserError
from bts_lightning.modalities import parse_subset, subset_name

if TYPE_CHECKING:
    from bts_lightning.report.published import Published, Row

_COLUMNS = ("dataset", "split", "source", "method", "region", "metric", "quality", "note")


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--dataset", default="", help="as brats2020 (all)")
    parser.add_argument("--method", default="", help="as RFNet (all)")
    parser.add_argument("--region", default="", help="WT, TC, ET, ETpp or mean3 (all)")
    parser.add_argument("--metric", default="dice", help="dice or hd95 (%(default)s)")
    parser.add_argument("--source", default="", help="one paper or repository (all)")
    parser.add_argument("--subset", default="", help="as t1c or t2+flair (the mean over 15)")
    parser.add_argument("--corrupt", action="store_true", help="also tables known to be wrong")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write all their subsets instead")


def run(args: argparse.Namespace) -> int:
    """Print a row a method, under its data set, split and source, or write a file."""
    from bts_lightning.report import published

    subset = published.MEAN
    if args.subset and args.subset.lower() != subset:
        try:
            subset = subset_name(parse_subset(args.subset))
        except ValueError as error:
            raise UserError(f"--subset: {error}") from error
    tables = published.select(
        dataset=args.dataset,
        method=args.method,
        region=args.region,
        metric=args.metric,
        source=args.source,
        corrupt=args.corrupt,
    )
    if args.csv:
        _export(tables, args.csv)
    else:
        _print(published.rows(tables, subset), subset)
    return 0


def _export(tables: "Sequence[Published]", file: Path) -> None:
    from bts_lightning.files import write_whole
    from bts_lightning.report.published import MEAN
    from bts_lightning.report.table import SUBSET_NAMES

    if not tables:
        raise UserError("no published table is of that kind; ask for less, or give --corrupt")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS, "subset", "value"])
    for table in tables:
        told = [getattr(table, column) for column in _COLUMNS]
        for name, value in zip((*SUBSET_NAMES, MEAN), table.values.tolist(), strict=True):
            if value == value:
                writer.writerow([*told, name, value])
    print(write_whole(file, text.getvalue()))


def _print(found: "Sequence[Row]", subset: str) -> None:
    from rich import box
    from rich.table import Table

    from bts_lightning.report.published import MEAN, WARNING
    from bts_lightning.report.screen import Screen

    console = Screen()
    if not found:
        raise UserError("no published number is of that kind; ask for less, or give --corrupt")
    regions = [r for r in ("WT", "TC", "ET", "ETpp", "mean3") if any(r in f.values for f in found)]
    unit = {"dice": "Dice (%)", "hd95": "HD95 (mm)"}
    what = "mean over 15 subsets" if subset == MEAN else subset
    for (dataset, split, source, metric), group in groupby(
        found, lambda row: (row.dataset, row.split, row.source, row.metric)
    ):
        console.print(f"{dataset}, {unit[metric]}, {what}; split: {split}; {source}", style="bold")
        table = Table(box=box.SIMPLE_HEAD)
        for i, heading in enumerate(["method", *regions, "quality"]):
            table.add_column(heading, justify="right" if 0 < i <= len(regions) else "left")
        notes: list[str] = []
        for row in group:
            cells = [f"{row.values[r]:.2f}" if r in row.values else "" for r in regions]
            table.add_row(row.method, *cells, row.quality)
            notes += [f"{row.method}: {n}" for n in row.notes if row.quality != "ok"]
        console.print(table)
        for note in notes:
            console.print(f"  {note}")
    console.print(WARNING)
