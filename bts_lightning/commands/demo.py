"""`bts demo`: phantom, training, all 15 subsets and a report, on any laptop, in minutes."""

import argparse
import time
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bts_lightning import config as configuration
from bts_lightning import runs
from bts_lightning.commands.evaluate import evaluate
from bts_lightning.commands.train import train
from bts_lightning.errors import Parser
from bts_lightning.report.screen import Screen

CASES = 30
# Voxels of 2.5 mm along two axes, of 1.9 along the third: heads of about 58×73×75 voxels.
SIZE = (96, 96, 80)
# About how many seconds each stage takes on two cores: what share of the whole it is.
STAGES = {"phantom": 25, "cache": 1, "train": 300, "evaluate": 22}
console = Screen()


def add_arguments(parser: Parser) -> None:
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="for the training")
    parser.add_argument("--data", type=Path, default=Path("scratch/demo"), help="phantom folder")
    parser.add_argument("--open", action="store_true", help="open the report in a browser")


def run(args: argparse.Namespace) -> int:
    """Run the stages one after the other and say how long each took."""
    # What is misspelt is said now, not after the patients are made.
    config = configuration.load(["demo", *args.words])
    configuration.check(config, supplied=configuration.SUPPLIED)
    from bts_lightning.data.cache.prepare import prepare
    from bts_lightning.data.phantom.write import write_phantom

    stages: dict[str, float] = {}
    with _stage(stages, f"phantom: {CASES} generated patients in {args.data}"):
        write_phantom(args.data, cases=CASES, seed=0, size=SIZE, preview=True)
    with _stage(stages, "cache: checked and normalised"):
        prepare(args.data)
    with _stage(stages, "train: a small A2FSeg, random modalities dropped"):
        train(["demo", f"data.root={args.data}", *args.words])
    trained = runs.find_run(None, "demo")
    with _stage(stages, "evaluate: 15 subsets of every test patient"):
        folder = evaluate(trained)
    console.print("\n" + (folder / "summary.md").read_text(encoding="utf-8"))
    console.print(", ".join(f"{name} {seconds:.0f} s" for name, seconds in stages.items()))
    report = (folder / "report.html").resolve()
    console.print(
        f"report  {report.as_uri()}\n"
        f"next    bts predict {trained} "
        "--flair FLAIR.nii.gz --t2 T2.nii.gz --out seg.nii.gz\n"
        "        bts prepare /data/BraTS2020 && bts train a2fseg fast data.root=/data/BraTS2020\n"
        f"        bts view {trained}"
    )
    if args.open:
        webbrowser.open(report.as_uri())
    return 0


@contextmanager
def _stage(stages: dict[str, float], title: str) -> Iterator[None]:
    """Say how long the rest will take: as planned, or as slowly as the stages before went."""
    usual = sum(STAGES[name] for name in stages)
    # Patients of an earlier demo take no time, which promises nothing.
    pace = max(1, sum(stages.values()) / usual) if usual else 1
    left = pace * (sum(STAGES.values()) - usual)
    console.print(f"{title}  (about {max(1, round(left / 60))} min to the report)", style="bold")
    started = time.monotonic()
    yield
    stages[title.partition(":")[0]] = time.monotonic() - started
