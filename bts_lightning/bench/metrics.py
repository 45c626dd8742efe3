"""Scores of one case: 15 subsets × 3 regions, Dice and HD95, and whether all agree."""

import argparse
import os
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bts_lightning.bench import synthetic
from bts_lightning.bench.contender import ALL, Scorer, Values
from bts_lightning.bench.machine import start
from bts_lightning.bench.result import Cell, Claim, Result, Table, chosen
from bts_lightning.bench.timing import Timing, failures, take_turns
from bts_lightning.errors import UserError
from bts_lightning.metrics.lesions.cases import CutCase
from bts_lightning.metrics.lesions.tasks import TASKS
from bts_lightning.metrics.score import score
from bts_lightning.modalities import REGIONS

NEEDS_PEERS = True
PEERS = ("monai", "medpy", "surface-distance", "simpleitk", "torchmetrics", "scipy")
# Design targets, whole case.
TARGETS = {"MONAI": 40.0, "medpy, cropped": 20.0, "lesion by lesion": 100.0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what can be chosen."""
    parser.add_argument("--size", default="240x240x155", help="grid of the case (%(default)s)")
    parser.add_argument("--rounds", type=int, help="rounds of ours (15, 2 with --quick)")
    parser.add_argument("--only", default="", help="these rows and ours; leaves the results alone")
    parser.add_argument("--sample", type=int, help="masks for slow peers (6, 3 with --quick)")


def measure(args: argparse.Namespace) -> Result:
    """Time all contenders on the same label maps and compare their values."""
    rounds = args.rounds or (2 if args.quick else 15)
    sample = args.sample or (3 if args.quick else 6)
    truth, predicted = full_case(synthetic.read_grid(args.size))
    result = start(
        "metrics",
        args,
        packages=PEERS,
        settings={"grid": args.size, "masks": ALL, "slow peers score": sample},
    )
    contenders = [_ours(predicted, truth, threads, "pooled") for threads in (None, 1)]
    contenders.append(_ours(predicted, truth, None, "directed"))
    contenders.append(_lesions(predicted, truth))
    if not args.no_peers:
        # Not imported above: on a machine without peers ours can still be measured.
        peers: Any = import_module("bts_lightning.bench.metrics_peers")
        contenders += peers.contenders(predicted, truth, sample, quick=args.quick)
    names = chosen([contender.name for contender in contenders], args.only)
    if not names:
        listed = "; ".join(contender.name for contender in contenders)
        raise UserError(f"no row has {args.only!r} in its name; there are: {listed}")
    contenders = [contender for contender in contenders if contender.name in names]
    timings = take_turns(
        {c.name: c.work for c in contenders},
        rounds,
        fewer={c.name: c.rounds for c in contenders if c.rounds is not None},
    )
    again = f'{args.command.removeprefix("bts bench ")} --only "{{scores by}}"'
    result.tables += [_times(contenders, timings, again), _agreement(contenders)]
    result.claims += _claims(contenders, timings)
    return result


def full_case(size: tuple[int, ...]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Give truth and predictions on the grid of the files, as peers score them."""
    z, y, x = (
        round(n * brain / full)
        for n, brain, full in zip(size, synthetic.BRAIN, synthetic.FULL, strict=True)
    )
    _, label = synthetic.make_case((z, y, x))
    truth = np.zeros(size, np.uint8)
    starts = [(n - i) // 2 for n, i in zip(size, label.shape, strict=True)]
    truth[tuple(slice(s, s + i) for s, i in zip(starts, label.shape, strict=True))] = label
    return truth, synthetic.make_predictions(truth)


def _ours(
    predicted: NDArray[np.uint8], truth: NDArray[np.uint8], threads: int | None, definition: Any
) -> Scorer:
    name = f"ours, {definition}" + (f", {threads} thread" if threads else "")
    contender = Scorer(name, lambda: None, definition=definition)

    def work() -> None:
        scores = score(predicted, truth, hd95=definition, threads=threads)
        for s in range(len(predicted)):
            for r in range(len(REGIONS)):
                contender.dice[s, r] = float(scores["dice"][s, r])
                contender.hd95[s, r] = float(scores["hd95"][s, r])

    contender.work = work
    return contender


def _lesions(predicted: NDArray[np.uint8], truth: NDArray[np.uint8]) -> Scorer:
    contender = Scorer("ours, lesions as in 2023", lambda: None, definition="lesions")

    def work() -> None:
        task = TASKS["brats2023", "gli"]
        case = CutCase(truth, predicted, (1.0, 1.0, 1.0), task, threads=min(4, os.cpu_count() or 1))
        for r, region in enumerate(REGIONS):
            for s, scored in enumerate(case.scored(region)):
                contender.dice[s, r], contender.hd95[s, r] = scored.dice, scored.hd95

    contender.work = work
    return contender


def seconds_a_case(contender: Scorer, timing: Timing) -> float:
    """Scale to all masks of a case."""
    return timing.median * ALL / contender.masks


def _times(contenders: list[Scorer], timings: dict[str, Timing], again: str) -> Table:
    best = seconds_a_case(contenders[0], timings[contenders[0].name])
    rows: list[list[Cell]] = []
    for contender in contenders:
        timing = timings[contender.name]
        seconds = seconds_a_case(contender, timing)
        rows.append([contender.name, seconds, timing.spread, contender.masks, seconds / best])
    return Table(
        "Scoring 15 subsets × 3 regions of one case",
        ["scores by", "s a case", "±", "masks scored", "× ours"],
        rows,
        [
            "Dice and HD95, of whole regions and lesion by lesion. Where fewer than 45 masks were"
            " scored the time is scaled up to 45. torchmetrics has no HD95 of volumes, nnU-Net v2"
            " none at all; SimpleITK's own filter knows the maximum only, so its distance maps are"
            " measured. The program of BraTS 2023 has no licence and is not run: its way is, with"
            " SciPy's labels in place of cc3d's.",
            *failures(timings),
        ],
        again,
    )


def _agreement(contenders: list[Scorer]) -> Table:
    ours = {c.definition: c for c in contenders if c.name.startswith("ours")}
    rows: list[list[Cell]] = []
    for contender in contenders:
        if contender.name.startswith("ours"):
            continue
        same = ours.get(contender.definition)
        against = same or ours["directed"]
        dice = _largest(contender.dice, against.dice)
        rows.append(
            [
                contender.name,
                len(contender.dice) or len(contender.hd95),
                dice,
                against.definition,
                _largest(contender.hd95, against.hd95),
                "the same" if same else "another",
            ]
        )
    return Table(
        "Do the values agree? Largest difference from ours",
        ["scores by", "masks", "Dice", "our HD95", "HD95, mm", "its definition is"],
        rows,
    )


def _largest(theirs: Values, ours: Values) -> float | None:
    return max((abs(value - ours[key]) for key, value in theirs.items()), default=None)


def _claims(contenders: list[Scorer], timings: dict[str, Timing]) -> list[Claim]:
    best = {
        c.definition: seconds_a_case(c, timings[c.name])
        for c in reversed(contenders)
        if c.name.startswith("ours") and "thread" not in c.name
    }
    claims = []
    for word, target in TARGETS.items():
        for contender in contenders:
            if contender.name.startswith(word):
                theirs = seconds_a_case(contender, timings[contender.name])
                ratio = theirs / best.get(contender.definition, min(best.values()))
                if not np.isnan(ratio):
                    claims.append(Claim(f"scoring a case against {contender.name}", target, ratio))
    return claims
