"""`bts compare`: every evaluated run against the first, paired by case and subset."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bts_lightning.commands.words import is_place
from bts_lightning.errors import Parser
from bts_lightning.runs.folder import find_run

if TYPE_CHECKING:
    from bts_lightning.report.screen import Screen


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "runs", nargs="+", metavar="RUN|EXPERIMENT", help="the first is the baseline"
    )
    parser.add_argument("--out", type=Path, help="folder for table and figure")
    text = "a column of cases.csv; may be repeated"
    parser.add_argument("--metric", action="append", metavar="NAME", help=text)


def run(args: argparse.Namespace) -> int:
    places = [Path(word) if is_place(word) else find_run(None, word) for word in args.runs]
    return compare(places, args.out, metrics=args.metric)


def compare(
    runs: Sequence[Path],
    out: Path | None = None,
    console: "Screen | None" = None,
    metrics: Sequence[str] | None = None,
) -> int:
    """Print every run against the first, and write Markdown, HTML and figures if `out` is given."""
    # pandas takes a second, which no help text needs.
    from bts_lightning.report.evaluations import open_evaluations
    from bts_lightning.report.terminal import compare_evaluations

    compare_evaluations(open_evaluations(runs), out, console, metrics)
    return 0
