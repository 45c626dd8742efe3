"""`bts record`: what a study has reproduced of a paper, as a file to send."""

import argparse
import json
from pathlib import Path

from bts_lightning.errors import Parser


def add_arguments(parser: Parser) -> None:
    parser.add_argument("study", type=Path, metavar="STUDY", help="folder of a finished study")
    parser.add_argument("--experiment", default="", help="which one (the only one)")
    parser.add_argument("--dataset", default="", help="as brats2020 (what case names tell)")
    parser.add_argument("--method", default="", help="what the paper calls it (the network)")
    parser.add_argument("--source", default="", help="of the printed numbers: bts published")
    parser.add_argument(
        "--official", action="store_true", help="STUDY is one run with the authors' own weights"
    )
    parser.add_argument("--by", default="", help="who trained it: a name or a link")


def run(args: argparse.Namespace) -> int:
    """Write the file, print its row, and say where to send it."""
    from bts_lightning.study.record import record

    file = record(
        args.study,
        args.experiment,
        dataset=args.dataset,
        method=args.method,
        source=args.source,
        by=args.by,
        official=args.official,
    )
    told = json.loads(file.read_text(encoding="utf-8"))
    print(f"{told['network']} on {told['data']}, {told['test_cases']} test cases")
    for region, (mean, *spread) in told["ours"].items():
        ours = f"{mean:.2f}" + "".join(f" ± {value:.2f}" for value in spread)
        if told["paper"]:
            ours += f", paper {told['paper'][region]:.2f}, gap {told['gap'][region]:+.2f}"
        print(f"{region:4}{ours}")
    if not told["paper"]:
        print("no printed number stands beside it; `bts published` lists what there is")
    print(f"record  {file}\nsend    it, as a file of docs/status/ or in an issue; it holds no path")
    return 0
