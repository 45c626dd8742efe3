"""`bts report`: tables, plots and the page of an evaluation, computed from its files alone."""

import argparse
from pathlib import Path

from bts_lightning.errors import Parser


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="a run, or RUN/evaluation/NAME"
    )
    parser.add_argument(
        "--published",
        default="",
        metavar="DATASET",
        help="whose published numbers to show, as brats2020 (what the names of the cases tell)",
    )
    parser.add_argument("--corrupt", action="store_true", help="also tables known to be wrong")


def run(args: argparse.Namespace) -> int:
    """Write summary and page again, after an update or on another machine."""
    from bts_lightning.report.published import select
    from bts_lightning.report.table import evaluation_folder
    from bts_lightning.report.write import write_report

    # Before anything is written.
    select(dataset=args.published)
    for folder in args.runs:
        where = evaluation_folder(folder)
        print(write_report(where, published=args.published, corrupt=args.corrupt))
    return 0
