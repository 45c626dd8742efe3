"""All 15 subsets of a case: a loop over masks, cases and windows beside our one pass."""

import argparse
import csv
import gc
from collections.abc import Callable
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bts_lightning.bench import synthetic
from bts_lightning.bench.arithmetic import count
from bts_lightning.bench.machine import start
from bts_lightning.bench.naive import segment_naively, write_volume
from bts_lightning.bench.recipes import Recipe
from bts_lightning.bench.result import Cell, Claim, Result, Table
from bts_lightning.bench.timing import seconds_of
from bts_lightning.inference import Clock, Protocol, segment
from bts_lightning.metrics.score import score
from bts_lightning.modalities import COMPLETE, REGIONS, SUBSETS, subset_name

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
STAGES = ("read", "encode", "decode", "accumulate", "label", "metrics", "write")
# Design targets of the whole command.
TARGET, PAPER_TARGET = 4.0, 12.0
# What encoding once alone could give, by arithmetic; we may lose a tenth of it.
SHARE_OF_BOUND = 1 / 1.1
# These repositories compute their training heads in evaluation too (docs of `naive`).
WITH_AUXILIARY = ("rfnet", "mmformer")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what can be chosen."""
    parser.add_argument("networks", nargs="*", help="as a2fseg:variant=paper,width=8")
    parser.add_argument("--window", type=int, help="for networks named here (their patch)")
    parser.add_argument("--size", help="grid of the brain (150x180x135)")
    parser.add_argument("--overlap", type=float, help="of windows (0.5; 0.25 on a CPU)")
    parser.add_argument("--precision", choices=("32", "bf16", "16"), help="of both (32; bf16)")
    parser.add_argument("--masks", type=int, help="how many the naive loop does (15; 4 on a CPU)")
    parser.add_argument("--rounds", type=int, default=1, help="in turns (%(default)s)")


def measure(args: argparse.Namespace) -> Result:
    """Time both on one case, network after network."""
    on_gpu = args.device.type == "cuda"
    chosen = {name: args.window or Recipe(name).patch for name in args.networks}
    networks = chosen or NETWORKS[args.device.type]
    masks = args.masks or (len(SUBSETS) if on_gpu else 2 if args.quick else 4)
    size = args.size or ("96x96x96" if args.quick and not on_gpu else "150x180x135")
    settings = {
        "grid": size,
        "overlap": args.overlap if args.overlap is not None else (0.5 if on_gpu else 0.25),
        "precision": args.precision or ("bf16" if on_gpu else "32"),
        "masks of the loop": masks,
        "rounds": args.rounds,
    }
    result = start("subsets", args, packages=("medpy",), settings=settings)
    case = _Case(args.scratch, tuple(int(n) for n in size.split("x")))
    theirs = _medpy_seconds(case) if not args.no_peers and not on_gpu else None
    rows: list[list[Cell]] = []
    split: list[list[Cell]] = []
    for name, window in networks.items():
        race = _Race(Recipe(name), window, case, settings, args.device)
        race.run(args.rounds)
        rows.append(race.row(theirs))
        split += race.split()
        result.claims += race.claims(theirs)
        del race
        _free()
    result.tables += [_times(rows, masks, theirs), _stages(split)]
    return result


class _Case:
    """A case in memory, with the label maps that both sides score.

    Untrained networks find nonsense all over the brain; a time for scoring that would say nothing.
    """

    def __init__(self, scratch: Path, size: tuple[int, ...]) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        z, y, x = size
        self.image, self.truth = synthetic.make_case((z, y, x))
        self.predicted = synthetic.make_predictions(self.truth)
        self.cached = scratch / "case.npy"
        np.save(self.cached, self.image)
        self.file = write_volume(self.image, scratch / "volume.npy")


class _Race:
    """Ours and the loop, with one network."""

    def __init__(
        self,
        recipe: Recipe,
        window: int,
        case: _Case,
        settings: dict[str, Any],
        device: torch.device,
    ) -> None:
        torch.manual_seed(0)
        self.name, self.window, self.case, self.device = recipe.name, window, case, device
        changes = {"patch": window} if "patch" in recipe.tree["net"] else {}
        self.cost = count(Recipe(recipe.name), window) if not changes else _count(recipe, changes)
        self.net = recipe.net(**changes).to(device).eval()
        self.loss = recipe.loss()
        overlap, precision = settings["overlap"], settings["precision"]
        # As RFNet's and mmFormer's repositories weigh windows; it costs the same.
        self.protocol = Protocol(
            window=window, overlap=overlap, precision=precision, weighting="constant"
        )
        step = len(SUBSETS) / settings["masks of the loop"]
        self.masks = sorted({int((i + 1) * step) - 1 for i in range(settings["masks of the loop"])})
        self.skips = recipe.name.startswith("a2fseg")
        self.auxiliary = recipe.name.startswith(WITH_AUXILIARY)
        self.clocks: dict[str, list[Clock]] = {}
        self.seconds: dict[str, list[float]] = {}
        self.maps: dict[str, NDArray[np.uint8]] = {}

    def run(self, rounds: int) -> None:
        """Take turns; the first windows of each are not timed."""
        self._warm_up()
        for _ in range(rounds):
            self._time("loop", lambda clock: self._loop(clock, skip_absent=False))
            if self.skips:
                self._time("loop, absent skipped", lambda c: self._loop(c, skip_absent=True))
            self._time("ours", self._ours)

    def row(self, theirs: float | None) -> list[Cell]:
        """Give the seconds of both, ratios, bounds and how far the label maps differ."""
        loop, ours = self._whole("loop"), self._whole("ours")
        different = float(np.mean(self.maps["loop"] != self.maps["ours"][self.masks]))
        whole = (loop + theirs) / ours if theirs is not None else None
        skipped = self._network("loop, absent skipped") / self._network("ours")
        return [
            self.name,
            self.window,
            loop,
            ours,
            self._network("loop") / self._network("ours"),
            skipped if self.skips else None,
            whole,
            self.cost.reuse_bound,
            self.cost.ours_bound,
            f"{different:.1e}",
        ]

    def split(self) -> list[list[Cell]]:
        """Give where the time goes."""
        return [
            [self.name, who, *(self._stage(who, name) for name in STAGES)] for who in self.seconds
        ]

    def claims(self, theirs: float | None) -> list[Claim]:
        """Hold the ratios against the targets of the design."""
        network = self._network("loop") / self._network("ours")
        bound = self.cost.reuse_bound * SHARE_OF_BOUND
        is_paper = "variant=paper" in self.name
        target = PAPER_TARGET if is_paper else TARGET
        claims = [Claim(f"{self.name}: network and windows, of the bound", bound, network)]
        if is_paper:
            claims.append(Claim(f"{self.name}: network and windows", PAPER_TARGET, network))
        if theirs is not None:
            whole = (self._whole("loop") + theirs) / self._whole("ours")
            claims.append(Claim(f"{self.name}: whole command", target, whole))
        return claims

    def _warm_up(self) -> None:
        small = synthetic.make_case((self.window,) * 3)[0]
        segment(self.net, self.loss, small, COMPLETE, self.protocol, device=self.device)
        score(self.case.predicted, self.case.truth)

    def _time(self, who: str, work: Callable[[Clock], None]) -> None:
        clock = Clock()
        seconds = seconds_of(lambda: work(clock))
        self.seconds.setdefault(who, []).append(seconds)
        self.clocks.setdefault(who, []).append(clock)

    def _loop(self, clock: Clock, *, skip_absent: bool) -> None:
        self.maps["loop"] = segment_naively(
            self.net,
            self.loss,
            self.case.file,
            self.protocol,
            [SUBSETS[m] for m in self.masks],
            self.device,
            skip_absent=skip_absent,
            auxiliary=self.auxiliary,
            clock=clock,
        )

    def _ours(self, clock: Clock) -> None:
        image = np.load(self.case.cached, mmap_mode="r")
        self.maps["ours"] = segment(
            self.net, self.loss, image, COMPLETE, self.protocol, device=self.device, clock=clock
        )
        with clock.stage("metrics"):
            scores = score(self.case.predicted, self.case.truth)
        with clock.stage("write"):
            table = csv.writer(StringIO())
            for s, subset in enumerate(SUBSETS):
                for r, region in enumerate(REGIONS):
                    values = scores.dice[s, r], scores.hd95[s, r]
                    table.writerow(["case", subset_name(subset), region, *values])

    def _scale(self, who: str) -> float:
        return 1.0 if who == "ours" else len(SUBSETS) / len(self.masks)

    def _whole(self, who: str) -> float:
        return float(np.median(self.seconds[who])) * self._scale(who)

    def _network(self, who: str) -> float:
        """Give the seconds of everything but metrics and the table."""
        if who not in self.clocks:
            return np.nan
        return sum(self._stage(who, name) or 0 for name in STAGES[:5])

    def _stage(self, who: str, name: str) -> float | None:
        found = [clock.seconds.get(name) for clock in self.clocks[who]]
        values = [seconds for seconds in found if seconds is not None]
        return float(np.median(values)) * self._scale(who) if values else None


def _count(recipe: Recipe, changes: dict[str, Any]) -> Any:
    words = ",".join(f"{key}={value}" for key, value in changes.items())
    separator = "," if ":" in recipe.name else ":"
    return count(Recipe(f"{recipe.name}{separator}{words}"), changes["patch"])


def _medpy_seconds(case: _Case) -> float:
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


def _times(rows: list[list[Cell]], masks: int, theirs: float | None) -> Table:
    scaled = f" The loop did {masks} of the masks and is scaled up to 15." if masks < 15 else ""
    scoring = (
        f" Whole command: the loop with medpy's Dice and HD95 on full volumes, {theirs:.0f} s a "
        "case, against our pass with our scores."
        if theirs is not None
        else ""
    )
    return Table(
        "15 subsets of one case: the loop of RFNet's repository against one pass",
        [
            "network",
            "window",
            "loop, s",
            "ours, s",
            "× faster, network and windows",
            "× absent skipped",
            "× whole command",
            "bound, encode once",
            "bound, ours",
            "voxels that differ",
        ],
        rows,
        [
            "Same weights, windows and precision. Bounds are ratios of arithmetic: what encoding"
            " once alone can give, and what we compute. *Absent skipped*: against a loop that does"
            " not run the encoders of absent modalities, as A2FSeg's repository." + scaled + scoring
        ],
    )


def _stages(split: list[list[Cell]]) -> Table:
    return Table("Where the seconds go", ["network", "", *STAGES], split)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
