"""A line for each epoch, for logs that are files."""

import time

from lightning import Callback, LightningModule, Trainer


class EpochLines(Callback):
    """Print one line an epoch, for logs that are files."""

    def __init__(self) -> None:
        # A training that was resumed in the middle of an epoch does not see this epoch begin.
        self._started = time.monotonic()
        self._is_validated = False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()
        self._is_validated = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember that this epoch has scores of its own."""
        self._is_validated = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print what was measured in this epoch."""
        # Whoever asks first lets the ranks add up, so all must ask, and at the same place.
        metrics = trainer.callback_metrics
        if not trainer.is_global_zero:
            return
        line = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        line += f"  {time.monotonic() - self._started:.0f} s"
        # Lightning keeps the scores of the last validation, however long ago it was.
        scores = ("val/dice/mean", "val/dice/WT", "val/dice/ET") if self._is_validated else ()
        for name in ("train/loss_epoch", *scores):
            if name in metrics:
                line += f"  {name.removesuffix('_epoch')} {float(metrics[name]):.4f}"
        print(line, flush=True)
