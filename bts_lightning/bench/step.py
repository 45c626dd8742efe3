"""A training step of each network and precision: seconds, arithmetic a second, memory."""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bts_lightning import config
from bts_lightning.bench import synthetic
from bts_lightning.bench.machine import start
from bts_lightning.bench.race import Recipe
from bts_lightning.bench.result import Cell, Claim, Result, Table, again, goal
from bts_lightning.bench.timing import Timing, free, reason, seconds_of, synchronise
from bts_lightning.data.augment import Augment
from bts_lightning.data.patches import PatchLoader, to_device
from bts_lightning.data.samples import PatchDataset
from bts_lightning.errors import UserError, did_you_mean
from bts_lightning.memory import keep_freed_memory
from bts_lightning.modalities import MODALITIES

# Small forms for a CPU; published ones for a GPU, at their published patch.
NETWORKS = {
    "cpu": ("a2fseg:width=8,poolings=4", "rfnet:width=8", "uhved", "unet:width=8,poolings=4"),
    "cuda": ("a2fseg", "a2fseg:variant=paper", "rfnet", "mmformer", "amoe_bts", "uhved", "unet"),
}
# Edge of the square matrices whose product gives the peak.
PEAK_EDGE = {"cpu": 1024, "cuda": 8192}
# How the last cell of a row begins that could not be measured.
FAILED = "failed: "
# Kernels are chosen and compiled before the clock runs.
WARM = {"cpu": 1, "cuda": 3}


@dataclass(frozen=True)
class Mode:
    """How a step is computed.

    Attributes:
        dtype: of autocast; None for single precision.
        scaled: the loss is scaled, as half precision needs.
    """

    name: str
    dtype: torch.dtype | None = None
    scaled: bool = False
    channels_last: bool = False
    compiled: bool = False


OFFICIAL = Mode("official", torch.float16, scaled=True)
FAST = Mode("fast", torch.bfloat16, channels_last=True, compiled=True)
MODES = {
    mode.name: mode
    for mode in (
        Mode("fp32"),
        Mode("fp32-last", channels_last=True),
        OFFICIAL,
        Mode("fp16-last", torch.float16, scaled=True, channels_last=True),
        Mode("bf16", torch.bfloat16),
        Mode("bf16-last", torch.bfloat16, channels_last=True),
        Mode("bf16-compiled", torch.bfloat16, compiled=True),
        FAST,
    )
}
CHOSEN = {"cpu": "fp32,fp32-last,bf16", "cuda": "fp32,official,bf16,bf16-last,fast"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what can be chosen."""
    parser.add_argument("networks", nargs="*", help="as a2fseg:variant=paper,width=8")
    parser.add_argument("--modes", help=f"of {', '.join(MODES)}; separated by commas")
    parser.add_argument("--patch", type=int, help="edge (the published one; 48 on a CPU)")
    parser.add_argument("--batch", type=int, default=1, help="samples a step (%(default)s)")
    parser.add_argument("--steps", type=int, help="timed steps (10; 4 on a CPU)")
    on_or_off = argparse.BooleanOptionalAction
    parser.add_argument("--loader", action=on_or_off, help="also fed by a real loader (on a GPU)")


def measure(args: argparse.Namespace) -> Result:
    """Time every network in every mode; a mode that fails gives a row that says why."""
    kind = args.device.type
    recipes = [Recipe(name) for name in args.networks or NETWORKS[kind]]
    modes = [_mode(word) for word in (args.modes or CHOSEN[kind]).split(",")]
    steps = args.steps or (2 if args.quick else 4 if kind == "cpu" else 10)
    keep_freed_memory()
    peaks = {mode.dtype: matrix_peak(mode.dtype, args.device) for mode in modes}
    settings = {"batch": args.batch, "steps": steps, "present": "all four modalities"}
    result = start("step", args, settings=settings)
    rows: list[list[Cell]] = []
    result.tables.append(_table(rows, peaks, args))
    for recipe in recipes:
        name = recipe.name
        patch = args.patch or (recipe.patch if kind == "cuda" else 48)
        arithmetic = count_step(name, patch, args.batch)
        found: dict[Mode, tuple[Timing, int]] = {}
        for mode in modes:
            if mode is OFFICIAL and not name.startswith("a2fseg"):
                continue
            print(f"{name}, {patch}³, {mode.name}", flush=True)
            row: list[Cell] = [name, patch, mode.name]
            try:
                timing, memory = time_step(recipe, mode, patch, args.batch, steps, args.device)
            except Exception as error:  # a compiler or memory may be missing; the rest can go on
                print(f"  {error}", flush=True)
                rows.append([*row, *[None] * 5, FAILED + reason(error)])
                free()
                continue
            found[mode] = timing, memory
            speed = arithmetic / timing.median
            share = f"{speed / peaks[mode.dtype]:.0%}"
            gib = memory / 2**30 if memory else None
            rows.append([*row, timing.median, timing.spread, speed / 1e12, share, gib, ""])
            # A lease may end: what there is must be on disk.
            result.save(args.results)
        if name == "a2fseg" and OFFICIAL in found:
            result.claims += claims(found, arithmetic, peaks)
    if args.loader or (args.loader is None and kind == "cuda"):
        result.tables.append(fed_step(args, recipes[0], modes[-1]))
    return result


def claims(
    found: dict[Mode, tuple[Timing, int]],
    arithmetic: float,
    peaks: dict[torch.dtype | None, float],
) -> list[Claim]:
    """Hold the fastest of our modes against the official one, and against the device."""
    others = [mode for mode in found if mode is not OFFICIAL]
    if not others:
        return []
    best = min(others, key=lambda mode: found[mode][0].median)
    (theirs, held), (ours, needed) = found[OFFICIAL], found[best]
    share = arithmetic / ours.median / peaks[best.dtype]
    kept = [goal("step", theirs.median / ours.median), goal("share", share)]
    return [*kept, goal("memory", held / needed)] if needed else kept


def _mode(word: str) -> Mode:
    if word not in MODES:
        raise UserError(f"there is no mode {word!r}; {did_you_mean(word, MODES)}")
    return MODES[word]


def time_step(
    recipe: Recipe, mode: Mode, patch: int, batch: int, steps: int, device: torch.device
) -> tuple[Timing, int]:
    """Give the seconds of steps and the peak memory."""
    free()
    train = stepper(recipe, mode, patch, device)
    given = synthetic_batch(batch, patch, device)
    for _ in range(WARM[device.type]):
        train(given)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = [seconds_of(lambda: train(given)) for _ in range(steps)]
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    return Timing(seconds), memory


def stepper(
    recipe: Recipe, mode: Mode, patch: int, device: torch.device
) -> Callable[[dict[str, Any]], None]:
    """Build network, loss and optimizer of the experiment, and what does one step with them."""
    torch.manual_seed(0)
    torch.compiler.reset()
    settings: dict[str, Any] = {
        "channels_last": mode.channels_last,
        "compile_net": mode.compiled,
        "main_loss_from_epoch": 0,
    }
    task = recipe.task(recipe.net(patch), **settings).to(device).train()
    task.setup("fit")
    optimizer = task.make_optimizer(task.parameters())
    scaler = torch.amp.GradScaler(device.type, enabled=mode.scaled)

    def train(batch: dict[str, Any]) -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, mode.dtype, enabled=mode.dtype is not None):
            total = torch.stack(list(task._step(batch).values())).sum()
        scaler.scale(total).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()

    return train


def synthetic_batch(size: int, patch: int, device: torch.device) -> dict[str, Any]:
    """Make a batch as it stands on the device when a step begins."""
    cases = [synthetic.make_case((patch,) * 3, seed=i) for i in range(size)]
    everything = torch.ones(size, len(MODALITIES), dtype=torch.bool)
    batch = {
        "image": torch.from_numpy(np.stack([image for image, _ in cases])),
        "label": torch.from_numpy(np.stack([label for _, label in cases])),
        "present": everything,
        "available": everything,
        "case": [f"synthetic_{i}" for i in range(size)],
        "seed": list(range(size)),
    }
    moved = to_device(batch, device)
    return {**moved, "image": moved["image"].float()}


@cache
def count_step(name: str, patch: int, batch: int) -> float:
    """Count convolutions and matrix products, forward and backward, on empty tensors."""
    with torch.device("meta"):
        net = Recipe(name).net(patch).train()
    image = torch.empty(batch, len(MODALITIES), *[patch] * 3, device="meta")
    present = torch.ones(batch, len(MODALITIES), dtype=torch.bool, device="meta")
    with FlopCounterMode(display=False) as counter:
        output = net(image, present, present)
        predictions = [output.logits, *(extra.logits for extra in output.auxiliary)]
        terms = [x.sum() for x in predictions] + list(output.penalties.values())
        torch.stack(terms).sum().backward()  # type: ignore[no-untyped-call]
    return float(counter.get_total_flops())


@cache
def matrix_peak(dtype: torch.dtype | None, device: torch.device) -> float:
    """Measure what the device reaches in a large matrix product, FLOP a second."""
    edge = PEAK_EDGE[device.type]
    single = dtype is None
    before = torch.backends.cuda.matmul.allow_tf32
    # Convolutions in single precision run in TF32 by default; the peak must be that of the same.
    torch.backends.cuda.matmul.allow_tf32 = single
    try:
        a = torch.randn(edge, edge, device=device, dtype=dtype or torch.float32)
        b = torch.randn_like(a)
        multiply: Callable[[], Tensor] = lambda: a @ b  # noqa: E731
        first = min(seconds_of(multiply) for _ in range(WARM[device.type]))
        # Ten in a row, or the start of a kernel would count; one where that is nothing.
        times = 10 if first < 0.1 else 1
        found = [seconds_of(lambda: [multiply() for _ in range(times)]) for _ in range(3)]
        seconds = min(found) / times
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return 2 * edge**3 / seconds


def fed_step(args: argparse.Namespace, recipe: Recipe, mode: Mode) -> Table:
    """Train from cases on disk, and time the wait for data."""
    device, patch = args.device, args.patch or (recipe.patch if args.device.type == "cuda" else 48)
    size = synthetic.BRAIN if device.type == "cuda" else (2 * patch,) * 3
    cases = synthetic.write_cases(args.scratch, 2, size)
    patches = PatchDataset(cases, samples=1000, patch=patch)
    whole = Augment(config.build(config.load(["nnunet"]).data.augment))
    train = stepper(recipe, mode, patch, device)
    rows: list[list[Cell]] = []
    for threads, augment in product((1, 4), (Augment({}), whole)):
        pin = device.type == "cuda"
        loader = PatchLoader(patches, batch_size=args.batch, workers=threads, pin=pin)
        batches = iter(loader)
        waited, steps, began, warm = 0.0, 0, 0.0, WARM[device.type]
        for turn in range(warm + (4 if device.type == "cpu" else 6)):
            if turn == warm:
                synchronise()
                waited, began = 0.0, time.perf_counter()
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            train(augment(to_device(batch, device)))
            steps += turn >= warm
        synchronise()
        seconds = time.perf_counter() - began
        batches.close()  # type: ignore[attr-defined]
        word = "nnU-Net's" if augment.transforms else "none"
        rate = steps * args.batch / seconds
        rows.append([threads, word, seconds / steps, rate, f"{waited / seconds:.1%}"])
    return Table(
        f"{recipe.name}, {mode.name}, fed by the loader, augmented on the device",
        ["threads", "augmentation", "s a step", "patches/s", "waiting for data"],
        rows,
    )


def _table(
    rows: list[list[Cell]], peaks: dict[torch.dtype | None, float], args: argparse.Namespace
) -> Table:
    named = {None: "TF32" if args.device.type == "cuda" else "fp32", torch.float16: "fp16"}
    named |= {torch.bfloat16: "bf16"}
    shown = ", ".join(f"{named[dtype]} {peak / 1e12:.3g}" for dtype, peak in peaks.items())
    return Table(
        "One training step: forward, backward, optimizer",
        ["network", "patch", "mode", "s", "±", "TFLOP/s", "of peak", "peak memory, GiB", ""],
        rows,
        [
            f"Matrix product on this device, TFLOP/s: {shown}. Modes: *last* is memory with"
            " channels last, *fast* is bf16 with channels last, compiled. *official* is our network"
            " of the same wiring and arithmetic, run as A2FSeg's repository runs its own: fp16"
            " autocast with a scaled loss, contiguous, not compiled. Its own code was not run."
        ],
        again(args, "{network} --patch {patch} --modes {mode}"),
    )
