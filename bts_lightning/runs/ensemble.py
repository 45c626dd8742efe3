"""Runs as one thing that segments: a single network, or an ensemble of several."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
from lightning import LightningModule
from numpy.typing import NDArray
from torch import Tensor, nn

from bts_lightning.config import build
from bts_lightning.data.cache.prepare import CachedCase, prepare
from bts_lightning.data.cache.ready import ReadyCase
from bts_lightning.errors import ConfigError, DataError
from bts_lightning.inference import Importance, Protocol
from bts_lightning.inference.ensemble import Member, View, each_of_all, shared_loss
from bts_lightning.modalities import Subset
from bts_lightning.runs.opening import OpenRun, check_scheme, load_task
from bts_lightning.runs.temperature import with_temperature
from bts_lightning.task import SegmentationTask

# What is done to the mean, and how it is scored; all else each network has for itself.
_SHARED = (
    *("chosen_subsets", "draw", "et_minimum", "et_small", "component_minimum"),
    *("lesions", "lesion_task", "calibration", "importance", "hd95", "empty", "leak", "naive"),
)


class Ensemble(LightningModule):
    """The networks of some runs, which segment a case together; one alone gives what it gives.

    Each keeps its window, overlap, temperature and normalisation; their probabilities are averaged.

    Attributes:
        runs: where they come from.
        data: the data module of each run, not prepared.
        recipes: how each wants a case prepared.
        members: networks with their losses and protocols, a temperature being a number.
        loss: reads the mean.
        protocol: of the first; what must be shared is the same in all.

    Args:
        opened: the runs, as `runs.opening.open_runs` gives them.
        tasks: with their weights.
        protocols: with their temperatures.
    """

    def __init__(
        self,
        opened: Sequence[OpenRun],
        tasks: Sequence[SegmentationTask],
        protocols: Sequence[Protocol],
    ) -> None:
        super().__init__()
        self.runs = list(opened)
        self.tasks = nn.ModuleList(tasks)
        self.members = [
            Member(task.net, task.loss, protocol)
            for task, protocol in zip(tasks, protocols, strict=True)
        ]
        # Images are normalised as those were that a network learned from.
        self.data = [build(one.nodes["data"]) for one in opened]
        for task, data in zip(tasks, self.data, strict=True):
            check_scheme(task, data)
        self.recipes: list[Any] = [getattr(data, "recipe", None) for data in self.data]
        self._check()
        self.loss = shared_loss([member.loss for member in self.members])
        self.protocol = self.members[0].protocol

    def setup(self, stage: str) -> None:
        """Choose the memory format of each."""
        for task in self.tasks:
            cast(LightningModule, task).setup(stage)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Do nothing: `callbacks/case_scorer.py` scores, and writes each case down."""

    def admit(self) -> None:
        """Refuse networks that see what is absent, unless the protocol names that."""
        for member in self.members:
            member.protocol.admit(member.net, member.loss.scheme_name)

    def prepared(self, data: Any) -> list[Mapping[str, CachedCase]]:
        """Give the cases of a data set that is set up, for each network as it wants them."""
        own: dict[Any, Mapping[str, CachedCase]] = {getattr(data, "recipe", None): data.cases}
        for recipe, one in zip(self.recipes, self.runs, strict=True):
            if recipe in own:
                continue
            how = {key: getattr(recipe, key) for key in ("normalisation", "crop", "scheme")}
            cases = prepare(data.root, data.cache, **how, skip_broken=data.skip_broken)
            own[recipe] = {case.name: case for case in cases}
            if absent := sorted(data.cases.keys() - own[recipe].keys()):
                raise DataError(
                    f"{absent[0]} cannot be prepared as {one.run} wants it ({recipe.name}); take "
                    "it out of the data set"
                )
        return [own[recipe] for recipe in self.recipes]

    def each_subset(
        self,
        cases: Sequence[ReadyCase],
        subsets: Sequence[Subset],
        importance: Importance | None = None,
    ) -> Iterator[tuple[NDArray[np.uint8], Tensor]]:
        """Yield label map and probabilities of each subset; `cases` are one, as each wants it."""
        views = views_of(cases)
        return each_of_all(
            self.members, views, cases[0].available, subsets, self.device, importance
        )

    def _check(self) -> None:
        """Refuse runs whose probabilities have no mean, or whose mean would be read in two ways."""
        first, recipe = self.members[0], self.recipes[0]
        if first.protocol.importance and len(self.members) > 1:
            raise ConfigError(
                "evaluation.importance=true: each network of an ensemble weighs modalities its own "
                "way; evaluate each run by itself, or leave it out"
            )
        for one, member, other in zip(self.runs, self.members, self.recipes, strict=True):
            who = f"{self.runs[0].run} and {one.run}"
            schemes = [m.loss.scheme_name for m in (first, member)]
            if schemes[0] != schemes[1]:
                raise ConfigError(
                    f"{who} tell other tissues apart (data.scheme is {' and '.join(schemes)}), so "
                    "their probabilities have no mean; choose runs of one scheme"
                )
            if (recipe is None) != (other is None):
                raise ConfigError(
                    f"{who}: the data module of one does not say how it prepares images (it has no "
                    "`recipe`), so no case can be prepared for both"
                )
            for name in _SHARED:
                values = [getattr(m.protocol, name) for m in (first, member)]
                if values[0] != values[1]:
                    key = "subsets" if name == "chosen_subsets" else name
                    told = [getattr(m.protocol, key) for m in (first, member)]
                    raise ConfigError(
                        f"{who} differ in evaluation.{key} ({told[0]} and {told[1]}), which an "
                        f"ensemble has once; give it for all, as evaluation.{key}={told[0]}"
                    )


def load_ensemble(opened: Sequence[OpenRun]) -> Ensemble:
    """Load the weights of opened runs, and refuse runs that cannot be averaged; see `Ensemble`."""
    # Not in the constructor: a configuration can name the class, and must not make it read files.
    tasks = [load_task(one.nodes, one.checkpoint) for one in opened]
    return Ensemble(opened, tasks, [_protocol(one) for one in opened]).eval()


def views_of(cases: Sequence[ReadyCase]) -> list[View]:
    """Read each image once, however many networks see the same one."""
    images = {own: np.array(case.image) for own, case in {id(c): c for c in cases}.items()}
    return [View(images[id(case)], case.geometry.box) for case in cases]


def _protocol(opened: OpenRun) -> Protocol:
    return with_temperature(build(opened.nodes["evaluation"]), opened.run, opened.checkpoint)
