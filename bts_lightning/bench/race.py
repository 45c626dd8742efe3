"""Ours and a loop over masks and windows, with one network on one case."""

import csv
from collections.abc import Callable
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf

from bts_lightning import config
from bts_lightning.bench.arithmetic import count
from bts_lightning.bench.naive import dice_of, segment_naively
from bts_lightning.bench.timing import seconds_of
from bts_lightning.errors import UserError
from bts_lightning.inference import Clock, Protocol, segment
from bts_lightning.losses import SegmentationLoss
from bts_lightning.metrics.score import score
from bts_lightning.modalities import COMPLETE, REGIONS, SUBSETS, subset_name
from bts_lightning.networks.backbone import Backbone
from bts_lightning.task import SegmentationTask

STAGES = ("read", "encode", "decode", "accumulate", "label", "metrics", "write")
LOOP, OURS = "loop", "ours"
# The loop is that of the network's own repository: these compute their training heads in
# evaluation too, and this one runs the encoders of the subset alone.
WITH_AUXILIARY, SKIPS_ABSENT = ("rfnet", "mmformer"), ("a2fseg",)


class Recipe:
    """An experiment with a network: `a2fseg`, `a2fseg:variant=paper,width=8`, `a2fseg+smoke`."""

    def __init__(self, name: str) -> None:
        experiment, _, changes = name.partition(":")
        words = [f"net.{change}" for change in changes.split(",") if change]
        self.name, self.config = name, config.load([*experiment.split("+"), *words])
        if "_target_" not in (self.config.get("net") or {}):
            raise UserError(f"experiment {experiment} has no network; `bts show` lists those with")
        # Without memory for its weights, to find at once what the network refuses.
        with torch.device("meta"):
            self.net()

    def net(self, patch: int | None = None) -> Backbone:
        """Build the network; one that must know its patch is told."""
        sized = {"net": {"patch": patch}} if patch and "patch" in self.config.net else {}
        net: Backbone = config.build(OmegaConf.merge(self.config, sized).task.net)
        return net

    def loss(self) -> SegmentationLoss:
        """Build the loss."""
        loss: SegmentationLoss = config.build(self.config.task.loss)
        return loss

    def task(self, net: Backbone, **settings: Any) -> SegmentationTask:
        """Build the task that trains this network."""
        task: SegmentationTask = config.build(self.config.task, net=net, **settings)
        return task

    @property
    def patch(self) -> int:
        """Edge of the published training patch."""
        patch = self.config.data.patch
        return int(patch if isinstance(patch, int) else max(patch))


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
    """Let both run in turns."""

    def __init__(
        self, recipe: Recipe, case: Case, protocol: Protocol, device: torch.device
    ) -> None:
        torch.manual_seed(0)
        self.name, self.case, self.protocol, self.device = recipe.name, case, protocol, device
        window = protocol.size[0]
        make = partial(recipe.net, window)
        cost = count(make, window, device)
        self.net = make().to(device).eval()
        self.loss = recipe.loss()
        self.skips = recipe.name.startswith(SKIPS_ABSENT)
        self.auxiliary = recipe.name.startswith(WITH_AUXILIARY)
        self.reuse_bound = cost.reuse_bound(skips_absent=self.skips)
        self.ours_bound = cost.ours_bound(skips_absent=self.skips)
        self.clocks: dict[str, list[Clock]] = {}
        self.seconds: dict[str, list[float]] = {}
        self.maps: dict[str, NDArray[np.uint8]] = {}

    def run(self, rounds: int) -> None:
        """Take turns; the first window of each is not timed."""
        self._warm_up()
        for _ in range(rounds):
            self._time(LOOP, self._loop)
            self._time(OURS, self._ours)

    def whole(self, who: str) -> float:
        """Give the seconds of a case from file to scores: Dice in the loop, HD95 too in ours."""
        return float(np.median(self.seconds[who]))

    def network(self, who: str) -> float:
        """Give the seconds of everything but scores and the table."""
        return sum(self.stage(who, name) or 0 for name in STAGES[:5])

    def stage(self, who: str, name: str) -> float | None:
        """Give the seconds of one stage."""
        found = [clock.seconds[name] for clock in self.clocks[who] if name in clock.seconds]
        return float(np.median(found)) if found else None

    def different(self) -> float:
        """Give the share of voxels where the two sides' label maps differ."""
        return float(np.mean(self.maps["loop"] != self.maps["ours"]))

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

    def _loop(self, clock: Clock) -> None:
        self.maps["loop"] = segment_naively(
            self.net,
            self.loss,
            self.case.volume,
            self.protocol,
            SUBSETS,
            self.device,
            skip_absent=self.skips,
            auxiliary=self.auxiliary,
            clock=clock,
            score=lambda number, _: dice_of(self.case.predicted[number], self.case.truth),
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
