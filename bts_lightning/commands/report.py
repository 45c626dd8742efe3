"""`bts report`: tables, plots and the page of an evaluation, computed from its files alone."""

from collections.abc import Sequence
from pathlib import Path

from bts_lightning.errors import Parser


def main(words: Sequence[str]) -> int:
    """Write summary and page of evaluations again, after an update or on another machine."""
    parser = Parser(prog="bts report", description=__doc__)
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="a run, or RUN/evaluation/NAME"
    )
    args = parser.parse_args(list(words))
    # Imported here: `bts report --help` needs no pandas.
    from bts_lightning.report.table import evaluation_folder
    from bts_lightning.report.write import write_report

    for run in args.runs:
        print(write_report(evaluation_folder(run)))
    return 0
