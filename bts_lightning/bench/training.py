"""Two short trainings, as a user starts them, with the curve and the table of 15 subsets."""

import argparse
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from bts_lightning.bench.peers import run_bts
from bts_lightning.bench.result import Cell, Table
from bts_lightning.errors import UserError
from bts_lightning.report.table import EvaluationTable

# Seconds that start and evaluation take beside the steps.
BESIDE = {"cpu": 200, "cuda": 25}
# What the demo does until its end takes less on a GPU; a2fseg goes on for all that is left.
TRAININGS = {
    "cpu": {"demo smoke": 240.0, "a2fseg smoke": 240.0},
    "cuda": {"demo": 60.0, "a2fseg net.width=16 data.patch=96 data.steps_per_epoch=50": 60.0},
}
# Points of a curve that a page has room for.
POINTS = 8
CASES, SIZE = 8, {"cpu": (48, 48, 40), "cuda": (96, 96, 80)}


def data(args: argparse.Namespace) -> Path:
    """Give the data set that was given, or make a phantom where that can be done."""
    if args.data is not None:
        return Path(args.data).resolve()
    try:
        from bts_lightning.data.cache.prepare import prepare
        from bts_lightning.data.phantom.write import write_phantom
    except ModuleNotFoundError as error:
        line = f"no phantom can be made here ({error}); make one elsewhere and give it by --data"
        raise UserError(line) from error
    size = SIZE[args.device.type]
    root = write_phantom(args.scratch / "trainings", cases=CASES, seed=0, size=size)
    prepare(root)
    return root.resolve()


def train(words: str, root: Path, seconds: float, args: argparse.Namespace) -> list[Table]:
    """Train until the time is over, evaluate, and keep what is small of the run."""
    kind = args.device.type
    place = (args.scratch / "runs_of_gpu").resolve()
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    longest = max(5, int(seconds - BESIDE[kind]))
    told = [f"data.root={root}", f"trainer.accelerator={'gpu' if kind == 'cuda' else 'cpu'}"]
    told += [f"trainer.max_time={{seconds: {longest}}}", "trainer.devices=1", "logger.wandb=null"]
    told += ["trainer.limit_val_batches=0", "callbacks.best=null", "callbacks.subsets=null"]
    told += ["callbacks.overlays=null", "callbacks.progress=null"]
    run_bts("train", *words.split(), *told, folder=place, seconds=seconds)
    (run,) = (file.parent for file in place.glob("runs/*/*/config.yaml"))
    run_bts("evaluate", str(run), folder=place, seconds=seconds)
    name = words.split()[0]
    kept = args.results / "trainings" / name
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(run, kept, ignore=shutil.ignore_patterns("checkpoints"))
    return [
        _curve(words, run / "logs" / "metrics.csv"),
        _subsets(words, run / "evaluation" / "test"),
    ]


def _curve(words: str, file: Path) -> Table:
    logged = pd.read_csv(file)
    values = dict(iter(logged.groupby("metric")))
    losses = values["train/loss"]
    parts = np.array_split(np.arange(len(losses)), min(POINTS, len(losses)))
    rows: list[list[Cell]] = [
        [int(losses["step"].iloc[part[-1]]) + 1, float(losses["value"].iloc[part].mean())]
        for part in parts
    ]
    speed = {
        text: values[f"speed/{name}"]["value"].median()
        for name, text in {
            "patches_per_second": "{:.3g} patches/s",
            "data_wait_share": "{:.1%} of the time waiting for data",
            "peak_memory_gib": "{:.3g} GiB at the most",
        }.items()
        if f"speed/{name}" in values
    }
    note = ", ".join(text.format(value) for text, value in speed.items())
    return Table(
        f"`bts train {words}`: loss",
        ["until step", "mean loss since the row above"],
        rows,
        [f"The training: {note}."] if note else [],
    )


def _subsets(words: str, folder: Path) -> Table:
    table = EvaluationTable.read(folder)
    means = 100 * np.nanmean(table.grid("dice"), axis=0)
    rows: list[list[Cell]] = [
        [subset, *map(float, mean)] for subset, mean in zip(table.subsets, means, strict=True)
    ]
    return Table(
        f"`bts train {words}`: Dice of test cases, per cent",
        ["subset", *table.regions],
        rows,
        [f"{len(table.cases)} phantoms after seconds of training: that it learns, not how well."],
    )
