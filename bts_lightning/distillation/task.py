"""The step of a student: that of the plain task, and terms that compare it with a teacher."""

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor

from bts_lightning.distillation.answer import Answer
from bts_lightning.distillation.teacher import Teacher
from bts_lightning.distillation.terms import LogitTerm, PrototypeTerm, Term
from bts_lightning.errors import ConfigError, UserError
from bts_lightning.networks.backbone import Backbone, Output
from bts_lightning.task import SegmentationTask


class DistillationTask(SegmentationTask):
    """Train a student that sees a subset, beside a frozen teacher that sees all of a case.

    The teacher is no part of the checkpoints: it is found again by its run, and must be the same.
    Cases that are incomplete by nature have no term; `train/distilled_share` is the share of the
    samples that had one. The terms start when the loss of the final prediction does.

    Args:
        net: the student, any network that obeys the contract.
        teacher: the folder of a run; null trains the student alone.
        terms: by name, what to learn; by default ProtoKD's `logits` and `prototypes`.

    The others are those of `SegmentationTask`.
    """

    def __init__(
        self,
        net: Backbone,
        *,
        teacher: str | None,
        terms: Mapping[str, Term | None] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(net, **options)
        if terms is None:
            terms = {"logits": LogitTerm(), "prototypes": PrototypeTerm()}
        self.terms = {name: term for name, term in terms.items() if term is not None}
        if teacher is not None and not self.terms:
            raise ConfigError(
                "task.terms are all null, so there is nothing to learn from the teacher; set "
                "task.teacher=null to train the student alone"
            )
        self.teacher_run = teacher
        # Opened by a training only: a student is evaluated without its teacher.
        self.teacher: Teacher | None = None
        self._is_checked = False

    def prepare_fit(self) -> None:
        """Open the teacher and see that it predicts what the student does."""
        if self.teacher_run is not None and self.teacher is None:
            self.teacher = Teacher.of(self.teacher_run)
            self.teacher.check_head(self.loss)

    def setup(self, stage: str) -> None:
        """Check the teacher against the split, and give its network the student's settings."""
        super().setup(stage)
        if stage != "fit":
            return
        self.prepare_fit()
        if self.teacher is None:
            return
        self.teacher.check_data(self.trainer.datamodule)  # type: ignore[attr-defined]
        if self.channels_last:
            self.teacher.net.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        if self.compile_net:
            self.teacher.net.compile()

    def extra_terms(
        self, image: Tensor, output: Output, batch: dict[str, Any]
    ) -> dict[str, Tensor]:
        """Compare with the teacher's answer to the complete cases of the batch."""
        if self.teacher is None:
            return {}
        available = batch["available"]
        is_complete = available.all(dim=1)
        taught = self.teacher.answer(image, available, batch.get("place"))
        student = Answer(self.net, output)
        if not self._is_checked:
            for term in self.terms.values():
                term.check(student, taught)
            self._is_checked = True
        self._count(is_complete)
        values = {}
        # Sums over voxels and small divergences are beyond half precision.
        with torch.autocast(image.device.type, enabled=False):
            for name, term in self.terms.items():
                distance = term(student, taught, batch["label"], self.loss)
                # Over all samples: one must weigh the same whatever stands beside it in the batch.
                mean = torch.where(is_complete, distance, 0.0).mean()
                values[f"distillation/{name}"] = self.main_factor * term.weight * mean
        return values

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write down who taught."""
        if self.teacher is not None:
            checkpoint["teacher"] = {"run": str(self.teacher.run), "sha256": self.teacher.sha256}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on with another teacher than the training began with."""
        before = checkpoint.get("teacher")
        now = self.teacher.sha256 if self.teacher is not None else None
        if (before["sha256"] if before else None) != now:
            told = f"the weights of {before['run']}" if before else "no teacher"
            raise UserError(
                f"this training began with {told}, now task.teacher={self.teacher_run} has others; "
                "give it back its teacher, or start a new run"
            )

    def _count(self, is_complete: Tensor) -> None:
        self.log(
            "train/distilled_share",
            is_complete.float().mean(),
            on_step=False,
            on_epoch=True,
            sync_dist=True,
            batch_size=len(is_complete),
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Let the teacher follow to another device or precision."""
        if self.teacher is not None:
            self.teacher.net._apply(fn)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
