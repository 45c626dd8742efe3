"""A teacher: the network of a finished run, frozen, checked against what its student may see."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from bts_lightning import config as configuration
from bts_lightning import runs
from bts_lightning.distillation.answer import Answer
from bts_lightning.distillation.leaks import refuse_leaks
from bts_lightning.errors import ConfigError
from bts_lightning.files import sha256
from bts_lightning.losses import SegmentationLoss
from bts_lightning.networks.backbone import Backbone
from bts_lightning.runs.checkpoints import load_weights, read_checkpoint
from bts_lightning.runs.container import is_package


class Teacher:
    """Answer with the best weights of a run; a plain object, so that no module or copy holds it.

    Attributes:
        run: the folder of the run.
        net: in evaluation, without gradients.
        sha256: of the checkpoint.
    """

    def __init__(
        self, run: Path, net: Backbone, loss: SegmentationLoss, config: DictConfig, sha256: str
    ) -> None:
        self.run = run
        self.net = net.eval().requires_grad_(False)
        self.loss = loss
        self.config = config
        self.sha256 = sha256

    @classmethod
    def of(cls, run: str | Path) -> "Teacher":
        """Open the teacher of a run, or say what is missing."""
        folder = Path(run)
        if is_package(folder):
            folder = runs.find_run(folder)
        if not runs.is_run(folder):
            raise ConfigError(
                f"teacher {run} is not a run: it has no config.yaml; train one first and give its "
                "folder, as task.teacher=runs/NAME/DATE"
            )
        file = runs.best_checkpoint(folder)
        config = configuration.load([str(runs.config_file(folder))])
        task = configuration.build(config.task)
        load_weights(task, read_checkpoint(file), file)
        return cls(folder, task.net, task.loss, config, sha256(file))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Teacher":
        """Stay one: what never changes needs no averaged copy."""
        return self

    @torch.no_grad()
    def answer(self, image: Tensor, available: Tensor, place: Tensor | None = None) -> Answer:
        """Segment all that the cases have."""
        return Answer(self.net, self.net(image, available, place=place))

    def check_head(self, loss: SegmentationLoss) -> None:
        """Refuse a teacher that predicts other things than the student."""
        if type(loss) is not type(self.loss) or loss.channels != self.loss.channels:
            raise ConfigError(
                f"teacher {self.run} was trained with {type(self.loss).__name__} on "
                f"{self.loss.channels} channels, the student has {type(loss).__name__} on "
                f"{loss.channels}; train both with one loss"
            )

    def check_data(self, data: Any) -> None:
        """Refuse a teacher that saw a patient whom the student is chosen by or scored on."""
        if patch := getattr(data, "patch", None):
            try:
                self.net.check_size(tuple(patch))
            except ValueError as error:
                raise ConfigError(f"teacher {self.run} cannot take data.patch: {error}") from error
        own, others = (
            getattr(one, "recipe", None) for one in (configuration.build(self.config.data), data)
        )
        for name in ("normalisation", "crop", "scheme"):
            saw, sees = getattr(own, name, None), getattr(others, name, None)
            if saw != sees:
                raise ConfigError(
                    f"teacher {self.run} saw data.{name}={saw}, the student has {sees}; both look "
                    "at one image, so give both the same"
                )
        refuse_leaks(self.run, data, who="teacher", learner="the student")
