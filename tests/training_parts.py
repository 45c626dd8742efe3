"""Callbacks that spoil a training on purpose; tests name them in the configuration."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from tests.faults.hook.sitecustomize import disturb


class SignalAt(Callback):
    """Send a signal to this process in the middle of one step."""

    def __init__(self, *, step: int, number: int = int(signal.SIGTERM)) -> None:
        self.step = step
        self.number = number

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor
    ) -> None:
        """Send it once the loss of that step is known."""
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


class TermBeforeTraining(Callback):
    """Send SIGTERM while nothing is trained yet."""

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Send it to this process."""
        os.kill(os.getpid(), signal.SIGTERM)


class PoisonAt(Callback):
    """Put NaN into one modality that is there, on one rank."""

    def __init__(self, *, step: int, rank: int = 0) -> None:
        self.step = step
        self.rank = rank

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Poison the batch of that step."""
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            here = int(batch["present"][0].nonzero()[0])
            batch["image"][0, here] = float("nan")


class OutOfMemoryAt(Callback):
    """Run out of memory on the first rank, as a GPU or one of its libraries would."""

    def __init__(self, *, step: int, said: str | None = None) -> None:
        self.step = step
        self.said = said

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Raise what CUDA raises."""
        if trainer.global_step != self.step:
            return
        if trainer.is_global_zero:
            raise RuntimeError(self.said) if self.said else torch.OutOfMemoryError("CUDA is full")
        time.sleep(1000)  # as another rank does in a collective of NCCL


class Present(Callback):
    """Let every sample of a rank keep one modality only, another one on each rank."""

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Choose the modality by rank."""
        batch["present"][:] = False
        batch["present"][:, trainer.global_rank] = True


class SlowEnds(Callback):
    """Take long after a step, as whatever waits for a GPU does."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Wait."""
        time.sleep(0.5)


class SlowSteps(Callback):
    """Make a step last, so that a test can hit it."""

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Wait."""
        time.sleep(0.05)


class LostAt(Callback):
    """Lose one rank at a step: `kill`, `stop`, `interrupt` it, or let it `raise`."""

    def __init__(self, *, step: int, rank: int, does: str) -> None:
        self.step = step
        self.rank = rank
        self.does = does

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Do it once in a run."""
        once = Path(trainer.default_root_dir) / "lost"
        here = (trainer.global_step, trainer.global_rank) == (self.step, self.rank)
        if here and not once.exists():
            once.touch()
            disturb(self.does)


class TightMemory(Callback):
    """Take nearly all of a card's memory away at a step."""

    def __init__(self, *, step: int) -> None:
        self.step = step

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Let this process have what it holds now, and a megabyte."""
        if trainer.global_step == self.step:
            torch.cuda.empty_cache()
            total = torch.cuda.get_device_properties(0).total_memory
            share = (torch.cuda.memory_reserved() + 2**20) / total
            torch.cuda.set_per_process_memory_fraction(min(1.0, share))
