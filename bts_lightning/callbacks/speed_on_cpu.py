"""Warn of a training that would take days on this CPU."""

import time
from typing import Any

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
