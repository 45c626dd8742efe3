"""All 15 subsets of a case: a loop over masks, cases and windows beside our one pass."""

import argparse
import gc
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bts_lightning.bench import synthetic
from bts_lightning.bench.machine import start
from bts_lightning.bench.naive import write_volume
from bts_lightning.bench.race import LOOP, OURS, SKIPPING, STAGES, Case, Race, Recipe
from bts_lightning.bench.result import Cell, Claim, Result, Table, again
from bts_lightning.bench.timing import seconds_of
from bts_lightning.inference import Protocol
from bts_lightning.memory import keep_freed_memory
from bts_lightning.modalities import REGIONS, SUBSETS

NEEDS_PEERS = True
# Of each a small form for a CPU, and the published one for a GPU; then the window.
NETWORKS = {
    "cpu": {
        "a2fseg:variant=paper,width=4,poolings=3": 64,
        "a2fseg:width=4,poolings=3": 64,
        "rfnet:width=4": 64,
        "uhved:width=4,fusion=mean": 64,
    },
    "cuda": {
        "a2fseg:variant=paper": 128,
        "a2fseg": 128,
        "rfnet": 80,
        "mmformer": 128,
        "uhved:fusion=mean": 112,
    },
}
# Design targets of the whole command.
TARGET, PAPER_TARGET = 4.0, 12.0
# What encoding once alone could give, by arithmetic; we may lose a tenth of it.
SHARE_OF_BOUND = 1 / 1.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what can be chosen."""
    parser.add_argument("networks", nargs="*", help="as a2fseg:variant=paper,width=8")
    parser.add_argument("--window", type=int, help="for networks named here (their patch)")
    parser.add_argument(
        "--size", help="a synthetic brain of this grid in place of a phantom of 240x240x155"
    )
    parser.add_argument("--overlap", type=float, help="of windows (0.5; 0.25 on a CPU)")
    parser.add_argument("--precision", choices=("32", "bf16", "16"), help="of both (32; bf16)")
    parser.add_argument("--masks", type=int, help="how many the naive loop does (15; 4 on a CPU)")
    parser.add_argument("--rounds", type=int, default=1, help="in turns (%(default)s)")


def measure(args: argparse.Namespace) -> Result:
    """Time both on one case, network after network."""
    keep_freed_memory()  # as `bts evaluate` does
    on_gpu = args.device.type == "cuda"
    chosen = {name: args.window or Recipe(name).patch for name in args.networks}
    networks = chosen or NETWORKS[args.device.type]
    masks = args.masks or (len(SUBSETS) if on_gpu else 2 if args.quick else 4)
    size = args.size or ("96x96x96" if args.quick else "150x180x135" if on_gpu else None)
    case = _case(args.scratch, size)
    settings = {
        "case": f"synthetic, {size}" if size else "phantom of 240x240x155",
        "brain": "x".join(map(str, case.truth.shape)),
        "overlap": args.overlap if args.overlap is not None else (0.5 if on_gpu else 0.25),
        "precision": args.precision or ("bf16" if on_gpu else "32"),
        "masks of the loop": masks,
        "rounds": args.rounds,
    }
    result = start("subsets", args, packages=("medpy",), settings=settings)
    medpy = _medpy_seconds(case) if not args.no_peers and not on_gpu else None
    rows: list[list[Cell]] = []
    split: list[list[Cell]] = []
    for name, window in networks.items():
        # RFNet's and mmFormer's repositories weigh windows evenly; it costs the same.
        protocol = Protocol(
            window=window,
            overlap=settings["overlap"],
            precision=settings["precision"],
            weighting="constant",
        )
        race = Race(Recipe(name), case, protocol, masks, args.device)
        race.run(args.rounds)
        rows.append(_row(race, medpy))
        split += [[name, who, *(race.stage(who, s) for s in STAGES)] for who in race.seconds]
        result.claims += _claims(race, medpy)
        del race
        _free()
    result.tables += [_times(rows, masks, medpy, args)]
    result.tables += [Table("Where the seconds go", ["network", "", *STAGES], split)]
    return result


def _case(scratch: Path, size: str | None) -> Case:
    scratch.mkdir(parents=True, exist_ok=True)
    if size is None:
        from bts_lightning.data.cache.prepare import prepare
        from bts_lightning.data.phantom.write import write_phantom

        found: Any = prepare(write_phantom(scratch / "case", cases=1, seed=0))[0]
    else:
        found = synthetic.write_cases(scratch, 1, synthetic.read_grid(size))[0]
    truth = np.asarray(found.label)
    volume = write_volume(found.image, scratch / "volume.npy")
    return Case(found.folder / "image.npy", volume, truth, synthetic.make_predictions(truth))


def _medpy_seconds(case: Case) -> float:
    """Time Dice and HD95 of medpy on some masks of the full grid; scale up to 45."""
    binary: Any = import_module("medpy.metric.binary")
    full = np.zeros(synthetic.FULL, np.uint8)
    box = tuple(slice(0, n) for n in case.truth.shape)
    seconds = []
    for s, members in enumerate(REGIONS.values()):
        masks = []
        for labels in (case.predicted[5 * s], case.truth):
            mask = np.zeros_like(full)
            mask[box] = labels
            masks.append(np.isin(mask, members))

        def work(found: Any = masks[0], there: Any = masks[1]) -> None:
            binary.dc(found, there)
            binary.hd95(found, there)

        seconds.append(seconds_of(work))
    return float(np.mean(seconds)) * len(SUBSETS) * len(REGIONS)


def _row(race: Race, medpy: float | None) -> list[Cell]:
    skipped = race.network(SKIPPING) / race.network(OURS)
    return [
        race.name,
        race.protocol.size[0],
        race.whole(LOOP),
        race.whole(OURS),
        race.network(LOOP) / race.network(OURS),
        race.cost.reuse_bound,
        race.cost.ours_bound,
        skipped if race.skips else None,
        race.whole(LOOP) / race.whole(OURS),
        _with_hd95(race, medpy),
        f"{race.different():.1e}",
    ]


def _with_hd95(race: Race, medpy: float | None) -> float | None:
    return None if medpy is None else (race.network(LOOP) + medpy) / race.whole(OURS)


def _claims(race: Race, medpy: float | None) -> list[Claim]:
    """Hold the ratios against the targets of the design."""
    network = race.network(LOOP) / race.network(OURS)
    bound = race.cost.reuse_bound * SHARE_OF_BOUND
    claims = [Claim(f"{race.name}: network and windows, of the bound", bound, network)]
    whole = _with_hd95(race, medpy)
    if whole is not None:
        target = PAPER_TARGET if "variant=paper" in race.name else TARGET
        what = f"{race.name}: whole command, Dice and HD95 (medpy in the loop)"
        claims.append(Claim(what, target, whole))
    return claims


def _times(
    rows: list[list[Cell]], masks: int, medpy: float | None, args: argparse.Namespace
) -> Table:
    notes = [
        "Same weights, windows, precision and convolutions. Bounds are ratios of arithmetic: what"
        " encoding once alone can give, and what we compute. *Absent skipped*: against a loop that"
        " does not run the encoders of absent modalities, as A2FSeg's repository. *With Dice*: from"
        " file to scores; the loop scores Dice alone, as RFNet's repository, ours HD95 too."
    ]
    if masks < len(SUBSETS):
        notes.append(f"The loop did {masks} of the masks and is scaled up to 15.")
    if medpy is not None:
        notes.append(f"*With HD95*: the loop takes medpy on full volumes, {medpy:.0f} s a case.")
    return Table(
        "15 subsets of one case: the loop of RFNet's repository against one pass",
        [
            "network",
            "window",
            "loop with Dice, s",
            "ours, s",
            "× network and windows",
            "bound, encode once",
            "bound, ours",
            "× absent skipped",
            "× with Dice",
            "× with HD95",
            "voxels that differ",
        ],
        rows,
        [" ".join(notes)],
        again(args, "{network} --window {window}"),
    )


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
