"""A teacher: the network of a finished run, frozen, checked against what its student may see."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from bts_lightning import config as configuration
from bts_lightning import runs
from bts_lightning.data.splits import PARTS, Split
from bts_lightning.distillation.answer import Answer
from bts_lightning.errors import ConfigError
from bts_lightning.files import sha256
from bts_lightning.losses import SegmentationLoss
from bts_lightning.networks.backbone import Backbone
from bts_lightning.runs.checkpoints import load_weights, read_checkpoint
from bts_lightning.runs.container import is_package
from bts_lightning.runs.seen import Seen


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
        patients = {name: case.patient for name, case in data.cases.items()}
        seen, chosen, left = self._lists(patients)
        if not (seen | chosen | left) & set(patients.values()):
            raise ConfigError(
                f"teacher {self.run} knows none of the cases in {data.root}, so nobody can tell "
                "whether it was trained on test cases; train it on this data set"
            )
        for part, did, theirs in (
            ("test", "trained on", seen),
            ("test", "was chosen by its score on", chosen),
            ("val", "trained on", seen),
        ):
            cases = getattr(data.split, part)
            leaked = [name for name in cases if patients.get(name, name) in theirs]
            if leaked:
                raise ConfigError(
                    f"teacher {self.run} {did} {len(leaked)} of the student's {len(cases)} {part} "
                    f"cases, such as {leaked[0]}; give the student the teacher's split, "
                    f"data.split={self.run / 'split.json'}"
                )

    def _lists(self, patients: dict[str, str]) -> list[set[str]]:
        """Give the patients of each part of the teacher's split, as far as the data have them."""
        if (digests := Seen.load(self.run)) is None:
            if not (self.run / "split.json").exists():
                raise ConfigError(
                    f"teacher {self.run} has no split.json, as one that was imported, so nobody "
                    "can tell what it was trained on; import it with the lists of its authors, as "
                    "data.split=split.json"
                )
            split = Split.load(self.run / "split.json")
            return [set(_patients(getattr(split, part), patients)) for part in PARTS]
        its = {patient: digests.part_of(name, patient) for name, patient in patients.items()}
        return [{patient for patient, part in its.items() if part == one} for one in PARTS]


def _patients(cases: Iterable[str], known: dict[str, str]) -> list[str]:
    """Tell whom cases show; one that is not there may be another scan of a patient who is."""
    there = set(known.values())
    # `BraTS-GLI-00005-101` and `Brats18_TCIA01_131_1` are a patient's name and a number.
    names = ((case, re.sub(r"[-_]\d+$", "", case)) for case in cases)
    return [known.get(case, stem if stem in there else case) for case, stem in names]
