"""A bar over the whole training, so that it says from the start how long there is to wait."""

import math
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


class TrainingBar(RichProgressBar):
    """Show one bar for all epochs, with the time that is left; Lightning shows one an epoch."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Name the epoch; the bar itself goes on."""
        if self.progress is None or self.is_disabled:
            return
        if self.train_progress_bar_id is None:
            self._initialize_train_progress_bar_id()
        assert self.train_progress_bar_id is not None
        name = self._get_train_description(trainer.current_epoch)
        self.progress.update(self.train_progress_bar_id, description=name)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batches of all epochs."""
        batches = trainer.fit_loop.total_batch_idx
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx=batches)

    def _initialize_train_progress_bar_id(self) -> None:
        """Begin the bar where the training begins or goes on."""
        trainer = self.trainer
        epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
        batches = epochs * self.total_train_batches
        if trainer.max_steps != -1:
            batches = min(batches, trainer.max_steps * trainer.accumulate_grad_batches)
        self.train_progress_bar_id = self._add_task(
            batches, self._get_train_description(trainer.current_epoch)
        )
        self._update(self.train_progress_bar_id, trainer.fit_loop.total_batch_idx + 1)
