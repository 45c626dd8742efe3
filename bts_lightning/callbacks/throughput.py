"""How fast a training goes, and what it waits for."""

import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer


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
