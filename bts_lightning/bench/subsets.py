"""All 15 subsets of a case: a loop over masks, cases and windows beside our one pass."""

import argparse
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bts_lightning.bench import synthetic
from bts_lightning.bench.machine import start
from bts_lightning.bench.metrics_peers import medpy_cropped
from bts_lightning.bench.naive import write_volume
from bts_lightning.bench.race import LOOP, OURS, STAGES, Case, Race, Recipe
from bts_lightning.bench.result import Cell, Claim, Result, Table, again, goal
from bts_lightning.bench.timing import free, seconds_of
from bts_lightning.inference import Protocol
from bts_lightning.memory import keep_freed_memory
from bts_lightning.modalities import REGIONS

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
# Of what encoding once alone could give, by arithmetic, we may lose a tenth.
SHARE_OF_BOUND = 1 / 1.1
# A third of the voxels of a BraTS grid: a round of all networks takes minutes on two cores.
PHANTOM = (160, 160, 104)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what can be chosen."""
    parser.add_argument("networks", nargs="*", help="as a2fseg:variant=paper,width=8")
    parser.add_argument("--window", type=int, help="for networks named here (their patch)")
    parser.add_argument(
        "--size", help="a synthetic brain of this grid in place of a phantom of 160x160x104"
    )
    parser.add_argument("--overlap", type=float, help="of windows (0.5; 0.25 on a CPU)")
    parser.add_argument("--precision", choices=("32", "bf16", "16"), help="of both (32; bf16)")
    parser.add_argument("--rounds", type=int, help="in turns (3, 1 with --quick)")


def measure(args: argparse.Namespace) -> Result:
    """Time both on one case, network after network."""
    keep_freed_memory()  # as `bts evaluate` does
    on_gpu = args.device.type == "cuda"
    chosen = {name: args.window or Recipe(name).patch for name in args.networks}
    networks = chosen or NETWORKS[args.device.type]
    rounds = args.rounds or (1 if args.quick else 3)
    size = args.size or ("96x96x96" if args.quick else "150x180x135" if on_gpu else None)
    case = _case(args.scratch, size)
    settings: dict[str, Any] = {
        "case": f"synthetic, {size}" if size else "phantom of " + "x".join(map(str, PHANTOM)),
        "brain": "x".join(map(str, case.truth.shape)),
        "overlap": args.overlap if args.overlap is not None else (0.5 if on_gpu else 0.25),
        "precision": args.precision or ("bf16" if on_gpu else "32"),
        "rounds": rounds,
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
        race = Race(Recipe(name), case, protocol, args.device)
        race.run(rounds)
        rows.append(_row(race, medpy))
        split += [[name, who, *(race.stage(who, s) for s in STAGES)] for who in race.seconds]
        result.claims += _claims(race, medpy)
        if on_gpu and name == "a2fseg":
            result.claims.append(goal("subsets", race.whole(LOOP) / race.whole(OURS)))
        del race
        free()
    result.tables += [_times(rows, medpy, args)]
    result.tables += [Table("Where the seconds go", ["network", "", *STAGES], split)]
    return result


@cache
def _case(scratch: Path, size: str | None) -> Case:
    scratch.mkdir(parents=True, exist_ok=True)
    if size is None:
        from bts_lightning.data.cache.prepare import prepare
        from bts_lightning.data.phantom.write import write_phantom

        found: Any = prepare(write_phantom(scratch / "race", cases=1, seed=0, size=PHANTOM))[0]
    else:
        found = synthetic.write_cases(scratch, 1, synthetic.read_grid(size))[0]
    truth = np.asarray(found.label)
    volume = write_volume(found.image, scratch / "volume.npy")
    return Case(found.folder / "image.npy", volume, truth, synthetic.make_predictions(truth))


def _medpy_seconds(case: Case) -> float:
    """Time Dice and HD95 of medpy on all masks, each cropped to what it compares."""
    measure = medpy_cropped()

    def work() -> None:
        for members in REGIONS.values():
            truth = np.isin(case.truth, members)
            for labels in case.predicted:
                measure(np.isin(labels, members), truth)

    return seconds_of(work)


def _row(race: Race, medpy: float | None) -> list[Cell]:
    return [
        race.name,
        race.protocol.size[0],
        race.whole(LOOP),
        race.whole(OURS),
        race.network(LOOP) / race.network(OURS),
        race.reuse_bound,
        race.ours_bound,
        race.whole(LOOP) / race.whole(OURS),
        _with_hd95(race, medpy),
        f"{race.different():.1e}",
    ]


def _with_hd95(race: Race, medpy: float | None) -> float | None:
    return None if medpy is None else (race.network(LOOP) + medpy) / race.whole(OURS)


def _claims(race: Race, medpy: float | None) -> list[Claim]:
    """Hold both ratios against what arithmetic gives to encoding once."""
    bound = race.reuse_bound * SHARE_OF_BOUND
    network = race.network(LOOP) / race.network(OURS)
    claims = [Claim(f"{race.name}: network and windows, of the bound", bound, network)]
    whole = _with_hd95(race, medpy)
    if whole is not None:
        what = f"{race.name}: whole command, Dice and HD95 (medpy in the loop), of the bound"
        claims.append(Claim(what, bound, whole))
    return claims


def _times(rows: list[list[Cell]], medpy: float | None, args: argparse.Namespace) -> Table:
    notes = [
        "Same weights, windows, precision and convolutions. The loop is that of the network's own"
        " repository: A2FSeg's runs the encoders of the subset alone, RFNet's all of them and the"
        " heads of training too. Bounds are ratios of arithmetic: what encoding once alone can"
        " give over that loop, and what we compute. *With Dice*: from file to scores; the loop"
        " scores Dice alone, as RFNet's repository, ours HD95 too."
    ]
    if medpy is not None:
        notes.append(
            f"*With HD95*: the loop scores by medpy, cropped to both masks, {medpy:.1f} s a case."
        )
    return Table(
        "15 subsets of one case: the loop of the repository against one pass",
        [
            "network",
            "window",
            "loop with Dice, s",
            "ours, s",
            "× network and windows",
            "bound, encode once",
            "bound, ours",
            "× with Dice",
            "× with HD95",
            "voxels that differ",
        ],
        rows,
        [" ".join(notes)],
        again(args, "{network} --window {window}"),
    )
