"""What grows with the number of cases and of ranks: time should, memory should not."""

import argparse
import json
import os
import resource
import shutil
import threading
import time
from pathlib import Path

import numpy as np

from bts_lightning.bench import synthetic
from bts_lightning.bench.machine import start
from bts_lightning.bench.peers import run_bts
from bts_lightning.bench.race import Recipe
from bts_lightning.bench.result import Cell, Claim, Result, Table
from bts_lightning.errors import UserError
from bts_lightning.modalities import COMPLETE

SIZE = (48, 48, 40)
PATCHES = 64
NETWORK = "uhemis:width=4"
# Memory of many cases over that of one may differ by this much.
FLAT = 0.9
STEPS = 24
# Cases that ranks train on.
FOR_RANKS = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what can be chosen."""
    parser.add_argument("--cases", default="1,4,16,64", help="numbers of cases (%(default)s)")
    parser.add_argument("--ranks", default="1,2", help="numbers of processes (%(default)s)")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)


def measure(args: argparse.Namespace) -> Result:
    """Run each number in a process of its own, whose peak is its alone."""
    if args.child:
        print(json.dumps(work_through(args.child)))
        raise SystemExit
    counts, ranks = (_numbers(text) for text in (args.cases, args.ranks))
    if args.quick:
        counts, ranks = [n for n in counts if n <= 16], ranks[:1]
    settings = {"grid": "x".join(map(str, SIZE)), "network": NETWORK, "patches": PATCHES}
    result = start("scale", args, settings=settings)
    everything = _phantom(args.scratch / "scale", max([*counts, FOR_RANKS]))
    if counts:
        found = {n: _child(args, _some(everything, n)) for n in counts}
        result.tables.append(_cases(found))
        few, many = counts[0], counts[-1]
        if few < many:
            what = f"memory of {few} over that of {many} cases"
            ratio = found[few]["memory"] / found[many]["memory"]
            result.claims.append(Claim(what, FLAT, ratio))
    if ranks:
        result.tables.append(_ranks(_some(everything, FOR_RANKS), ranks))
    return result


def _numbers(text: str) -> list[int]:
    """Read an option like `1,4,16`; each number counts once, the smallest first."""
    words = [word for word in text.split(",") if word]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise UserError(f"got {text}; give numbers from 1 on, as 1,4,16")
    return sorted({int(word) for word in words})


def _cases(found: dict[int, dict[str, float]]) -> Table:
    rows: list[list[Cell]] = [
        [n, f["prepare"] / n, PATCHES / f["train"], f["evaluate"] / n, f["memory"] / 2**20]
        for n, f in found.items()
    ]
    return Table(
        "As cases grow",
        ["cases", "prepare, s a case", "patches/s", "15 subsets, s a case", "memory, MiB"],
        rows,
        [
            "Memory: the most that the process held for itself at any time, without pages of files,"
            " which the system takes back when it needs them."
        ],
        "scale --cases {cases} --ranks= --results scratch/one",
    )


def work_through(root: Path) -> dict[str, float]:
    """Prepare a data set, read patches from all its cases, segment and score each."""
    import torch

    from bts_lightning.data.cache.prepare import prepare
    from bts_lightning.data.patches import PatchLoader
    from bts_lightning.data.samples import PatchDataset
    from bts_lightning.inference import Protocol, segment
    from bts_lightning.metrics.score import score

    torch.manual_seed(0)
    recipe = Recipe(NETWORK)
    net, loss, protocol = recipe.net().eval(), recipe.loss(), Protocol(window=32, overlap=0.0)
    seconds: dict[str, float] = {}
    with _PeakMemory() as peak:
        began = time.perf_counter()
        cases = prepare(root)
        seconds["prepare"] = time.perf_counter() - began

        began = time.perf_counter()
        for batch in PatchLoader(PatchDataset(cases, samples=PATCHES, patch=32), workers=1):
            batch["image"].float()
        seconds["train"] = time.perf_counter() - began

        # Compiled before the clock runs.
        image, truth = synthetic.make_case((32, 32, 32))
        score(segment(net, loss, image, COMPLETE, protocol), truth)
        began = time.perf_counter()
        for case in cases:
            maps = segment(net, loss, case.image, case.available, protocol)
            if case.label is not None:
                score(maps, np.asarray(case.label), case.geometry.spacing)
        seconds["evaluate"] = time.perf_counter() - began
    return {**seconds, "memory": peak.most}


class _PeakMemory:
    """Watch what the process holds for itself, fifty times a second."""

    def __init__(self) -> None:
        self.most = 0.0
        self._done = threading.Event()

    def __enter__(self) -> "_PeakMemory":
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.most = max(self.most, own_memory())


def own_memory() -> float:
    """Give the bytes that belong to this process alone, where the system tells them."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("RssAnon"):
                return 1024 * float(line.split()[1])
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _child(args: argparse.Namespace, root: Path) -> dict[str, float]:
    words = ["bench", "scale", "--device=cpu", f"--scratch={args.scratch}", f"--child={root}"]
    found: dict[str, float] = json.loads(run_bts(*words).strip().splitlines()[-1])
    return found


def _phantom(scratch: Path, cases: int) -> Path:
    from bts_lightning.data.phantom.write import write_phantom

    return write_phantom(scratch / f"cases_{cases}", cases=cases, seed=0, size=SIZE)


def _some(everything: Path, count: int) -> Path:
    """Make a data set of the first cases, without a cache."""
    root = everything.parent / f"first_{count}"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for folder in sorted(f for f in everything.iterdir() if f.is_dir() and f.name[0] != ".")[
        :count
    ]:
        (root / folder.name).symlink_to(folder.resolve())
    return root


def _ranks(root: Path, ranks: list[int]) -> Table:
    """Train as `bts train` does, with one core for each process."""
    rows: list[list[Cell]] = []
    one = None
    place = root.parent
    for count in ranks:
        command = ["train", "uhemis", "smoke"]
        command += [f"data.root={root.resolve()}", f"data.steps_per_epoch={STEPS // count}"]
        command += [f"trainer.devices={count}", "trainer.accelerator=cpu", "net.width=4"]
        command += ["data.patch=32", "callbacks.throughput.every_n_steps=4"]
        # Validation would count cases, not steps.
        command += ["trainer.limit_val_batches=0", "callbacks.progress=null"]
        shutil.rmtree(place / "runs", ignore_errors=True)
        began = time.perf_counter()
        run_bts(*command, folder=place, OMP_NUM_THREADS="1")
        seconds = time.perf_counter() - began
        rate = float(np.median(_logged(place / "runs", "speed/patches_per_second")))
        one = rate if count == 1 else one
        rows.append([count, rate, rate / one if one else None, seconds])
    return Table(
        "As ranks grow: `bts train uhemis smoke`, one core each",
        ["ranks", "patches/s", "× one", "whole command, s"],
        rows,
        [f"{os.cpu_count()} cores in all."],
        # One rank too: the others are told by it.
        "scale --cases= --ranks 1,{ranks} --results scratch/one",
    )


def _logged(runs: Path, metric: str) -> list[float]:
    rows = [
        line.split(",")
        for file in runs.rglob("metrics.csv")
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    return [float(row[2]) for row in rows if len(row) == 3 and row[1] == metric]
