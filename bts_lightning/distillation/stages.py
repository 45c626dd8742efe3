"""A training in stages: each begins with the weights of the one before."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from bts_lightning import runs
from bts_lightning.distillation.leaks import refuse_leaks
from bts_lightning.errors import ConfigError, UserError
from bts_lightning.networks.backbone import Backbone
from bts_lightning.runs.checkpoints import read_checkpoint
from bts_lightning.task import SegmentationTask


class StagedTask(SegmentationTask):
    """Begin with what another training has learned, as UniMRSeg's stages do.

    Args:
        net: any network.
        pretraining: the run of the stage before; null begins from nothing. `bts train` also takes
            the mix-in that makes that stage of this experiment, and finds its run or trains it.
        anew: parts of the network, as `head`, that the stage before has not, or not learned.
        segments: a stage that only prepares for the next may not.

    The others are those of `SegmentationTask`.
    """

    def __init__(
        self,
        net: Backbone,
        *,
        pretraining: str | None = None,
        anew: Sequence[str] = (),
        segments: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(net, **options)
        parts = dict(net.named_children())
        if unknown := [name for name in anew if name not in parts]:
            raise ConfigError(
                f"task.anew names {unknown[0]}, but {type(net).__name__} has {', '.join(parts)}"
            )
        self.pretraining = pretraining
        self.anew = tuple(f"{name}." for name in anew)
        self.segments = segments

    def prepare_fit(self) -> None:
        """Begin with the weights of the stage before; a training that goes on replaces them."""
        if self.pretraining is None:
            return
        run = Path(self.pretraining)
        if not runs.is_run(run) or not runs.checkpoint_files(run):
            raise ConfigError(
                f"task.pretraining is {run}, which is no run with a checkpoint; give the mix-in of "
                "the stage before, or the folder of its run, or null to begin without"
            )
        take_weights(self.net, runs.best_checkpoint(run), self.anew)

    def setup(self, stage: str) -> None:
        """Refuse a stage before that saw patients whom this one is chosen by or scored on."""
        super().setup(stage)
        if stage == "fit" and self.pretraining is not None:
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            refuse_leaks(Path(self.pretraining), data, who="first stage", learner="this training")


def take_weights(net: nn.Module, file: Path, anew: tuple[str, ...]) -> None:
    """Give a network all weights of another one, but those whose names begin so."""
    state = read_checkpoint(file)["state_dict"]
    given = {}
    for name, value in net.state_dict().items():
        if name.startswith(anew):
            continue
        found = state.get(f"net.{name}")
        if found is None or found.shape != value.shape:
            has = "no such weight" if found is None else tuple(found.shape)
            raise UserError(
                f"{file} is of another network: {name} is {has}, where {tuple(value.shape)} is "
                "needed; give net the values of the stage before"
            )
        given[name] = found
    net.load_state_dict(given, strict=False)
