"""Ours and a loop over masks and windows, with one network on one case."""

import csv
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bts_lightning.bench.arithmetic import count
from bts_lightning.bench.naive import dice_of, segment_naively
from bts_lightning.bench.recipes import Recipe
from bts_lightning.bench.timing import seconds_of
from bts_lightning.inference import Clock, Protocol, segment
from bts_lightning.metrics.score import score
from bts_lightning.modalities import COMPLETE, REGIONS, SUBSETS, subset_name

STAGES = ("read", "encode", "decode", "accumulate", "label", "metrics", "write")
LOOP, SKIPPING, OURS = "loop", "loop, absent skipped", "ours"
# These repositories compute their training heads in evaluation too.
WITH_AUXILIARY = ("rfnet", "mmformer")


class Case:
    """A cached case, and the label maps that both sides score.

    Untrained networks find nonsense all over the brain; a time for scoring that would say nothing.

    Args:
        cached: what we read, a file of float16 4×D×H×W.
        volume: what the loop reads, float32 and channels last.
    """

    def __init__(
        self, cached: Path, volume: Path, truth: NDArray[np.uint8], predicted: NDArray[np.uint8]
    ) -> None:
        self.cached, self.volume, self.truth, self.predicted = cached, volume, truth, predicted


class Race:
    """Let both run in turns.

    Args:
        masks: how many of the 15 the loop does; its seconds are scaled up.
    """

    def __init__(
        self, recipe: Recipe, case: Case, protocol: Protocol, masks: int, device: torch.device
    ) -> None:
        torch.manual_seed(0)
        self.name, self.case, self.protocol, self.device = recipe.name, case, protocol, device
        window = protocol.size[0]
        if "patch" in recipe.tree["net"]:
            recipe.tree["net"]["patch"] = window
        self.cost = count(recipe.net, window, device)
        self.net = recipe.net().to(device).eval()
        self.loss = recipe.loss()
        self.masks = spread_masks(masks)
        self.skips = recipe.name.startswith("a2fseg")
        self.auxiliary = recipe.name.startswith(WITH_AUXILIARY)
        self.clocks: dict[str, list[Clock]] = {}
        self.seconds: dict[str, list[float]] = {}
        self.maps: dict[str, NDArray[np.uint8]] = {}

    def run(self, rounds: int) -> None:
        """Take turns; the first window of each is not timed."""
        self._warm_up()
        for _ in range(rounds):
            self._time(LOOP, lambda clock: self._loop(clock, skip_absent=False))
            if self.skips:
                self._time(SKIPPING, lambda clock: self._loop(clock, skip_absent=True))
            self._time(OURS, self._ours)

    def whole(self, who: str) -> float:
        """Give the seconds of a case from file to scores: Dice in the loop, HD95 too in ours."""
        return float(np.median(self.seconds[who])) * self._scale(who)

    def network(self, who: str) -> float:
        """Give the seconds of everything but scores and the table; not a number if it never ran."""
        if who not in self.clocks:
            return np.nan
        return sum(self.stage(who, name) or 0 for name in STAGES[:5])

    def stage(self, who: str, name: str) -> float | None:
        """Give the seconds of one stage."""
        found = [clock.seconds[name] for clock in self.clocks[who] if name in clock.seconds]
        return float(np.median(found)) * self._scale(who) if found else None

    def different(self) -> float:
        """Give the share of voxels where the two sides' label maps differ."""
        return float(np.mean(self.maps["loop"] != self.maps["ours"][self.masks]))

    def _warm_up(self) -> None:
        patch = torch.zeros(1, 4, *self.protocol.size, device=self.device)
        with torch.inference_mode():
            self.net(patch, torch.tensor([COMPLETE], device=self.device))
        small = np.ones((4, *self.protocol.size), np.float16)
        segment(self.net, self.loss, small, COMPLETE, self.protocol, device=self.device)
        score(self.case.predicted, self.case.truth)

    def _time(self, who: str, work: Callable[[Clock], None]) -> None:
        clock = Clock()
        self.seconds.setdefault(who, []).append(seconds_of(lambda: work(clock)))
        self.clocks.setdefault(who, []).append(clock)

    def _loop(self, clock: Clock, *, skip_absent: bool) -> None:
        self.maps["loop"] = segment_naively(
            self.net,
            self.loss,
            self.case.volume,
            self.protocol,
            [SUBSETS[m] for m in self.masks],
            self.device,
            skip_absent=skip_absent,
            auxiliary=self.auxiliary,
            clock=clock,
            score=lambda number, _: dice_of(
                self.case.predicted[self.masks[number]], self.case.truth
            ),
        )

    def _ours(self, clock: Clock) -> None:
        image: NDArray[Any] = np.load(self.case.cached, mmap_mode="r")
        self.maps["ours"] = segment(
            self.net, self.loss, image, COMPLETE, self.protocol, device=self.device, clock=clock
        )
        with clock.stage("metrics"):
            scores = score(self.case.predicted, self.case.truth)
        with clock.stage("write"):
            table = csv.writer(StringIO())
            for s, subset in enumerate(SUBSETS):
                for r, region in enumerate(REGIONS):
                    values = scores["dice"][s, r], scores["hd95"][s, r]
                    table.writerow(["case", subset_name(subset), region, *values])

    def _scale(self, who: str) -> float:
        return 1.0 if who == OURS else len(SUBSETS) / len(self.masks)


def spread_masks(count: int) -> list[int]:
    """Choose masks with as many modalities as all 15 have on average, or a little fewer."""
    by_size = sorted(range(len(SUBSETS)), key=lambda s: sum(SUBSETS[s]))
    return sorted(by_size[int((i + 0.5) * len(SUBSETS) / count)] for i in range(count))
