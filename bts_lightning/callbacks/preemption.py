"""Callbacks that stop a training well, and say early what would not end well."""

import os
import signal
import socket
import subprocess
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info

from bts_lightning.runs.ranks import from_all_ranks


class PreemptedError(Exception):
    """A signal asked the training to stop; its state is saved."""


class Preemption(Checkpoint):
    """Save the state between two steps when SIGTERM, SIGINT, SIGHUP or Slurm's SIGUSR1 comes; stop.

    Lightning would save inside the signal handler, in the middle of a step: such a checkpoint does
    not continue bit for bit. After the last step of an epoch its validation is still done, because
    Lightning takes an epoch up again only before that step or after all of it.

    Args:
        requeue: ask Slurm to start the job again after SIGUSR1.
    """

    def __init__(self, *, requeue: bool = True) -> None:
        self.requeue = requeue
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._stop: PreemptedError | None = None
        self._steps = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals; later than Lightning does."""
        wanted = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
        if "SLURM_JOB_ID" in os.environ:
            wanted.append(signal.SIGUSR1)
        self.received = None
        self._steps = trainer.global_step
        # What `nohup`, or `&` in a script, lets a training ignore stays ignored.
        for number in (one for one in wanted if signal.getsignal(one) != signal.SIG_IGN):
            self._before[number] = signal.signal(number, self._note)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save here if any rank was told to stop; this step's curves are logged after this."""
        stepped = trainer.global_step != self._steps
        self._steps = trainer.global_step
        # Gradients that are still being accumulated are in no checkpoint.
        if stepped and not trainer.is_last_batch:
            self._save_if_told(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save here what the last step or the validation was told."""
        self._save_if_told(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop before the next step."""
        self._stop_if_saved()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop before a validation in the middle of an epoch."""
        self._stop_if_saved()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop before the next epoch."""
        self._stop_if_saved()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop an interrupted state that was continued to the end."""
        if trainer.is_global_zero:
            state_folder(trainer, "interrupted").unlink(missing_ok=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C does not wait for the step
        self.received = signal.Signals(number)

    def _save_if_told(self, trainer: Trainer) -> None:
        if not self._any_rank(trainer):
            return
        trainer.save_checkpoint(state_folder(trainer, "interrupted"), weights_only=False)
        told = from_all_ranks(trainer, [self._told(trainer)] if self.received else [])
        if self.received == signal.SIGUSR1 and self.requeue and trainer.is_global_zero:
            _requeue(os.environ["SLURM_JOB_ID"])
        self._stop = PreemptedError(
            f"stopped by {told[0]} in epoch {trainer.current_epoch}, step {trainer.global_step}"
        )

    def _stop_if_saved(self) -> None:
        if self._stop is not None:
            raise self._stop

    def _told(self, trainer: Trainer) -> str:
        assert self.received is not None
        name = self.received.name
        where = f" to rank {trainer.global_rank} on {socket.gethostname()}"
        return name if trainer.world_size == 1 else name + where

    def _any_rank(self, trainer: Trainer) -> bool:
        told = self.received is not None
        if trainer.world_size == 1:
            return told
        flag = torch.tensor(int(told), device=trainer.strategy.root_device)
        return bool(trainer.strategy.reduce(flag, reduce_op="sum") > 0)


def _requeue(job: str) -> None:
    try:
        done = subprocess.run(["scontrol", "requeue", job], check=False).returncode == 0
    except FileNotFoundError:  # as in a container that does not hold Slurm
        done = False
    if not done:
        rank_zero_info(f"Slurm did not take job {job} back; submit it again")


def state_folder(trainer: Trainer, name: str) -> Path:
    return Path(trainer.default_root_dir) / "checkpoints" / f"{name}.ckpt"
