"""`bts report`: tables, plots and the page of an evaluation, computed from its files alone."""

import argparse
from pathlib import Path

from bts_lightning.errors import Parser


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="a run, or RUN/evaluation/NAME"
    )


def run(args: argparse.Namespace) -> int:
    """Write summary and page again, after an update or on another machine."""
    from bts_lightning.report.table import evaluation_folder
    from bts_lightning.report.write import write_report

    for folder in args.runs:
        print(write_report(evaluation_folder(folder)))
    return 0
