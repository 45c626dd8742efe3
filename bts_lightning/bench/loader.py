"""Training patches: how many a second arrive, and how long one crop takes."""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bts_lightning import config
from bts_lightning.bench import synthetic
from bts_lightning.bench.contender import BATCH, Contender
from bts_lightning.bench.crops import claim_of_crops, own_crops, time_crops
from bts_lightning.bench.machine import start
from bts_lightning.bench.result import Cell, Claim, Result, Table, chosen
from bts_lightning.bench.timing import Timing, failures, synchronise, take_turns
from bts_lightning.data.augment import Augment
from bts_lightning.data.patches import PatchLoader, to_device
from bts_lightning.data.samples import PatchDataset
from bts_lightning.errors import UserError
from bts_lightning.memory import keep_freed_memory

NEEDS_PEERS = True
PEERS = ("torchio", "monai", "nnunetv2", "batchgeneratorsv2", "blosc2", "nibabel")
# Around a tumour voxel, which takes time to find: nnU-Net's 33 % are one of a batch of two.
FOREGROUND = 0.5
# So many samples that no epoch ends while the clock runs.
ENDLESS = 1_000_000
# Ours over the fastest way that was found to use any of them.
TARGET = 1.5
NOTES = (
    "Half of the patches are drawn around a tumour voxel, but not TorchIO's, whose UniformSampler"
    " knows none and whose LabelSampler is slower.",
    "*At its best*: prepared float16 volumes in memory, as ours are prepared, with what an expert"
    " would choose; the other rows of TorchIO and MONAI are set up as their documentation says, on"
    " files as they come, and give float32. All run in processes that keep freed memory, as ours do"
    " in a training; without that, MONAI at its best loses most.",
    "MONAI *without copies*: `copy_cache=False`, and the foreground of a case found once.",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what can be chosen."""
    parser.add_argument("--cases", type=int, default=4, help="phantoms (%(default)s)")
    parser.add_argument("--patch", type=int, default=128, help="edge in voxels (%(default)s)")
    parser.add_argument("--size", help="grid of a phantom (240x240x155; of noise: 150x180x135)")
    parser.add_argument("--rounds", type=int, help="rounds (3, 1 with --quick)")
    parser.add_argument("--seconds", type=float, help="of each contender a round (2)")
    text = "brains of noise in place of phantoms, without TorchIO's rows; so it is on a GPU"
    parser.add_argument("--synthetic", action="store_true", help=text)
    parser.add_argument("--only", default="", help="these rows and ours; leaves the results alone")


def measure(args: argparse.Namespace) -> Result:
    """Measure delivery, single crops and augmented delivery."""
    rounds = args.rounds or (1 if args.quick else 3)
    seconds = args.seconds or (1.0 if args.quick else 2.0)
    on_gpu, theirs = args.device.type == "cuda", not args.no_peers
    # A machine for GPU rows may have neither what reads NIfTI nor TorchIO.
    bare = on_gpu or args.synthetic
    size = synthetic.BRAIN if bare else synthetic.FULL
    size = synthetic.read_grid(args.size) if args.size else size
    cases = (
        synthetic.write_cases(args.scratch, args.cases, size)
        if bare
        else _phantoms(args.scratch, args.cases, size)
    )
    grid = "x".join(map(str, size))
    result = start(
        "loader",
        args,
        packages=PEERS,
        settings={"cases": len(cases), "patch": args.patch, "batch": BATCH, "grid": grid},
    )
    # As a training does, and for everybody, worker processes too.
    keep_freed_memory()
    plain = [ours(cases, args.patch, threads) for threads in (1, 2)]
    augmented = [ours_augmented(cases, args.patch, args.device, threads=2)]
    if on_gpu:
        plain.append(ours_augmented(cases, args.patch, args.device, threads=2, transforms={}))
    if not bare:
        plain += [ours_as_subjects(cases, args.patch, copies=copies) for copies in (False, True)]
        plain.append(theirs_on_subjects(cases, args.patch))
    crops: dict[str, Callable[[], object]] = {}
    if theirs and not bare:
        # Not imported above: on a machine without peers ours can still be measured.
        peers = import_module("bts_lightning.bench.loader_peers")
        there = peers.Peers(args.scratch / "phantom", cases, args.patch, BATCH)
        plain += there.plain()
        augmented += there.augmented()
        crops = there.crops()
    again = f'{args.command.removeprefix("bts bench ")} --only "{{loader}}"'
    title = f"Delivering training patches, {args.patch}³, 4 modalities and label"
    table = _delivery(title, _chosen(plain, args.only), rounds, seconds, again, NOTES)
    result.tables.append(table)
    result.claims += _claim("patches/s", table)
    crops = own_crops(cases, args.patch) | crops
    wanted = {name: crops[name] for name in chosen(list(crops), args.only)}
    table = time_crops(wanted, args.patch, rounds, again)
    result.tables.append(table)
    result.claims += claim_of_crops(table)
    title = f"The same, augmented by nnU-Net's recipe, {args.patch}³"
    table = _delivery(title, _chosen(augmented, args.only), rounds, seconds, again)
    result.tables.append(table)
    result.claims += _claim("augmented patches/s", table)
    if bare and not args.only:
        result.tables.append(transforms_alone(cases, args.patch, args.device, rounds))
    result.tables = [table for table in result.tables if table.rows]
    if not result.tables:
        names = [contender.name for contender in [*plain, *augmented]]
        listed = "; ".join([*names, *crops])
        raise UserError(f"no row has {args.only!r} in its name; there are: {listed}")
    return result


def ours(cases: list[Any], patch: int, threads: int) -> Contender:
    """Read by threads, straight into float16 batches."""

    @contextmanager
    def begin() -> Iterator[Iterator[int]]:
        patches = PatchDataset(cases, samples=ENDLESS, patch=patch, foreground=FOREGROUND)
        loader = PatchLoader(patches, batch_size=BATCH, workers=threads)
        batches = iter(loader)
        try:
            yield (len(batch["case"]) for batch in batches)
        finally:
            batches.close()  # type: ignore[attr-defined]

    name = f"ours, {threads} thread{'s' * (threads > 1)}"
    return Contender(name, begin, ahead=2 * max(2, threads) + BATCH)


def ours_as_subjects(cases: list[Any], patch: int, *, copies: bool = False) -> Contender:
    """Pass each patch through a TorchIO transform that does nothing, in two processes."""

    @contextmanager
    def begin() -> Iterator[Iterator[int]]:
        nothing = _nothing()
        patches = PatchDataset(
            cases,
            samples=ENDLESS,
            patch=patch,
            foreground=FOREGROUND,
            transforms={"none": nothing},
        )
        if copies:
            patches.transforms = {"none": nothing}
        batches = iter(PatchLoader(patches, batch_size=BATCH, workers=2))
        try:
            yield (len(batch["case"]) for batch in batches)
        finally:
            batches.close()  # type: ignore[attr-defined]

    name = f"ours as TorchIO subjects{' with copies' if copies else ''}, 2 processes"
    return Contender(name, begin, ahead=6 * BATCH)


def theirs_on_subjects(cases: list[Any], patch: int, samples: int = 4) -> Contender:
    """Let TorchIO read the very subjects that `data.subjects` gives, by its queue and loader."""
    length = 4 * samples

    @contextmanager
    def begin() -> Iterator[Iterator[int]]:
        torchio: Any = import_module("torchio")
        subjects_of = import_module("bts_lightning.data.subjects").subjects_of
        subjects = subjects_of((case, case.available) for case in cases * (ENDLESS // 10_000))
        subjects.set_transform(_nothing())
        sampler = torchio.UniformSampler(patch)
        queue = torchio.Queue(subjects, length, samples, sampler, num_workers=2)
        batches = iter(torchio.SubjectsLoader(queue, batch_size=BATCH, num_workers=0))
        yield (len(batch["name"]) for batch in batches)
        # The worker processes end with the last reference.
        del batches

    name = "TorchIO SubjectsLoader on data.subjects, 2 processes"
    return Contender(name, begin, ahead=length, cycle=length)


def _nothing() -> Any:
    return import_module("torchio").RandomFlip(flip_probability=0)


def ours_augmented(
    cases: list[Any],
    patch: int,
    device: torch.device,
    threads: int,
    transforms: Mapping[str, Any] | None = None,
) -> Contender:
    """Augment by the threads that read, or on the device; as a training does."""

    @contextmanager
    def begin() -> Iterator[Iterator[int]]:
        augment = Augment(_recipe() if transforms is None else transforms)
        patches = PatchDataset(
            cases, samples=ENDLESS, patch=patch, foreground=FOREGROUND, reach=augment.reach
        )
        here = device.type == "cpu"
        loader = PatchLoader(
            patches,
            batch_size=BATCH,
            workers=threads,
            pin=device.type == "cuda",
            augment=augment.fill if here else None,
        )
        batches = iter(loader)

        def arrive() -> Iterator[int]:
            for batch in batches:
                if not here:
                    augment(to_device(batch, device))
                    synchronise()
                yield len(batch["case"])

        try:
            yield arrive()
        finally:
            batches.close()  # type: ignore[attr-defined]

    word = "augmented on" if transforms is None else "on"
    return Contender(f"ours, {threads} threads, {word} {device.type}", begin, ahead=3 * BATCH)


def transforms_alone(
    cases: list[Any], patch: int, device: torch.device, rounds: int, batches: int = 8
) -> Table:
    """Time augmentation of batches that lie on the device, and each transform by itself."""
    patches = PatchDataset(cases, samples=batches * BATCH, patch=patch)
    loaded = [to_device(b, device) for b in PatchLoader(patches, batch_size=BATCH)]
    recipe = _recipe()
    work = {"all, as drawn": Augment(recipe)}
    for name, transform in recipe.items():
        # Not as rarely as the recipe draws it.
        work[name] = Augment({name: copy(transform)})
        work[name].transforms[name].p = 1.0
    timings = take_turns(
        {name: partial(_augment, augment, loaded) for name, augment in work.items()}, rounds
    )
    rows: list[list[Cell]] = [
        [name, 1000 * timing.median / (batches * BATCH), timing.spread]
        for name, timing in timings.items()
    ]
    return Table(
        f"Augmentation alone, {patch}³, on the device",
        ["transform", "ms a patch", "±"],
        rows,
        ["Each transform but the first row's is applied to every sample."],
    )


def _augment(augment: Augment, batches: list[dict[str, Any]]) -> None:
    for batch in batches:
        augment(batch)


def _recipe() -> dict[str, Any]:
    return dict(config.build(config.load(["nnunet"]).data.augment))


def rate(contender: Contender, seconds: float) -> float:
    """Give patches a second in steady state, with nobody else at work."""
    with contender.start() as arrivals:
        waiting = contender.ahead
        while waiting > 0:
            waiting -= next(arrivals)
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds or count % contender.cycle:
            count += next(arrivals)
        return count / (time.perf_counter() - began)


def _delivery(
    title: str,
    contenders: list[Contender],
    rounds: int,
    seconds: float,
    again: str,
    notes: tuple[str, ...] = (),
) -> Table:
    rates = {contender.name: Timing() for contender in contenders}
    for _ in range(rounds):
        for contender in contenders:
            rates[contender.name].add(contender.name, partial(rate, contender, seconds))
    best = max((t.median for name, t in rates.items() if name.startswith("ours, ")), default=np.nan)
    rows: list[list[Cell]] = [
        [name, timing.median, timing.spread, best / timing.median] for name, timing in rates.items()
    ]
    turns = f"{rounds} rounds in turns" if rounds > 1 else "one round"
    return Table(
        title,
        ["loader", "patches/s", "±", "best of ours is × as fast"],
        rows,
        [
            f"Batches of {BATCH} in the main process, {turns}, warm page cache; "
            "what was read ahead before the clock ran is not counted.",
            *notes,
            *failures(rates),
        ],
        again,
    )


def _claim(what: str, table: Table) -> list[Claim]:
    """Hold our best against the best of all others."""
    theirs = [float(row[3]) for row in table.rows if not str(row[0]).startswith("ours")]  # type: ignore[arg-type]
    measured = [ratio for ratio in theirs if not np.isnan(ratio)]
    return [Claim(f"{what} against the best peer", TARGET, min(measured))] if measured else []


def _chosen(contenders: list[Contender], only: str) -> list[Contender]:
    names = chosen([contender.name for contender in contenders], only)
    return [contender for contender in contenders if contender.name in names]


def _phantoms(scratch: Path, count: int, size: tuple[int, int, int]) -> list[Any]:
    from bts_lightning.data.cache.prepare import prepare
    from bts_lightning.data.phantom.write import write_phantom

    root = write_phantom(scratch / "phantom", cases=count, seed=0, size=size)
    return list(prepare(root))
