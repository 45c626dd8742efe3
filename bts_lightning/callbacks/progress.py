"""How fast a training goes, and how far it is."""

import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info


class SpeedOnCpu(Callback):
    """Say after some steps on a CPU how long the whole training would take, if that is days."""

    def __init__(self, *, after_steps: int = 3, worth_saying_hours: float = 12.0) -> None:
        if after_steps < 1:
            raise ValueError(f"after_steps is {after_steps}; the smallest is 1")
        self.after_steps = after_steps
        self.worth_saying_hours = worth_saying_hours
        self._started = 0.0
        self._steps = 0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock after the first step, which is slower."""
        if self._steps == 1:
            self._started = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Say it once."""
        self._steps += 1
        if self._steps != self.after_steps + 1 or pl_module.device.type != "cpu":
            return
        seconds = (time.monotonic() - self._started) / self.after_steps
        steps = trainer.estimated_stepping_batches * trainer.accumulate_grad_batches
        hours = seconds * float(steps) / 3600
        if hours >= self.worth_saying_hours:
            rank_zero_info(
                f"{seconds:.1f} s a step on this CPU: {steps} steps would take {hours / 24:.1f} "
                "days. For a try add `smoke` (seconds) or train `demo` (minutes); else use a GPU."
            )


class Throughput(Callback):
    """Log patches a second, the share of time that waits for data, and peak memory.

    Args:
        every_n_steps: steps to average over.
    """

    def __init__(self, *, every_n_steps: int = 20) -> None:
        self.every_n_steps = every_n_steps
        self._ended: float | None = None
        self._waited_before = 0.0
        self._reset()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the time between epochs out."""
        self._ended = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count the time since the last step, and how much of it went into waiting for data."""
        # What stands between two steps may wait for the device instead, so the loader must tell.
        now, waited = time.monotonic(), getattr(trainer.train_dataloader, "waited", 0.0)
        if self._ended is not None:
            self._between += now - self._ended
            self._waited += waited - self._waited_before
        self._began, self._waited_before = now, waited

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log once every so many steps."""
        now = time.monotonic()
        self._worked += now - self._began
        self._patches += len(batch["case"]) * trainer.world_size
        self._steps += 1
        self._ended = now
        if self._steps < self.every_n_steps:
            return
        if pl_module.device.type == "cuda":
            # Kernels of the last steps may still run; the figure must hold them.
            torch.cuda.synchronize()
            self._worked += time.monotonic() - now
            memory = torch.cuda.max_memory_allocated() / 2**30
            pl_module.log("speed/peak_memory_gib", memory, batch_size=1)
        elapsed = self._between + self._worked
        pl_module.log("speed/patches_per_second", self._patches / elapsed, batch_size=1)
        pl_module.log("speed/data_wait_share", self._waited / elapsed, batch_size=1)
        self._ended = time.monotonic()
        self._reset()

    def _reset(self) -> None:
        self._waited = self._between = self._worked = 0.0
        self._patches = self._steps = 0
        self._began = time.monotonic()


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
