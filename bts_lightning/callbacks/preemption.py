"""Callbacks that stop a training well, and say early what would not end well."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info
from omegaconf import DictConfig
from torch import Tensor

from bts_lightning.errors import EveryRankError, UserError
from bts_lightning.modalities import subset_name

# Number of Linux's prctl(2).
_PARENT_DEATH_SIGNAL = 1


class PreemptedError(Exception):
    """A signal asked the training to stop; its state is saved."""


class Preemption(Checkpoint):
    """Save the state between two steps when SIGTERM, SIGINT or Slurm's SIGUSR1 arrives, then stop.

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
        wanted = [signal.SIGTERM, signal.SIGINT]
        if "SLURM_JOB_ID" in os.environ:
            wanted.append(signal.SIGUSR1)
        self.received = None
        self._steps = trainer.global_step
        for number in wanted:
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
            _place(trainer, "interrupted").unlink(missing_ok=True)

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
        trainer.save_checkpoint(_place(trainer, "interrupted"), weights_only=False)
        name = self.received.name if self.received else "another rank"
        if self.received == signal.SIGUSR1 and self.requeue and trainer.is_global_zero:
            _requeue(os.environ["SLURM_JOB_ID"])
        self._stop = PreemptedError(
            f"stopped by {name} in epoch {trainer.current_epoch}, step {trainer.global_step}"
        )

    def _stop_if_saved(self) -> None:
        if self._stop is not None:
            raise self._stop

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


def _place(trainer: Trainer, name: str) -> Path:
    return Path(trainer.default_root_dir) / "checkpoints" / f"{name}.ckpt"


class FiniteLoss(Callback):
    """Stop at the first loss that is not finite, before it reaches the weights."""

    def __init__(self) -> None:
        self._batch: dict[str, Any] | None = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember whose loss comes next."""
        self._batch = batch

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Compare on every rank, so that none waits for one that has stopped."""
        own = loss.detach()
        bad = (~torch.isfinite(own)).any().int()
        if trainer.world_size > 1:
            bad = trainer.strategy.reduce(bad, reduce_op="sum")
        if not bad:
            return
        file = _place(trainer, "before_nonfinite")
        trainer.save_checkpoint(file, weights_only=False)
        guilty = _from_all_ranks(trainer, [] if own.isfinite() else [(float(own), self._cases())])
        cases = [case for _, names in guilty for case in names]
        raise EveryRankError(
            f"the loss is {guilty[0][0]} in epoch {trainer.current_epoch}, "
            f"step {trainer.global_step}, for {', '.join(cases)}; the weights before this step are "
            f"in {file}. Look at these cases, or lower task.optimizer.lr"
        )

    def _cases(self) -> list[str]:
        batch = self._batch or {}
        return [
            f"{case} ({subset_name(row)})"
            for case, row in zip(batch["case"], batch["present"].tolist(), strict=True)
        ]


def _from_all_ranks(trainer: Trainer, items: list[Any]) -> list[Any]:
    """Join the lists of all ranks, in their order."""
    if trainer.world_size == 1:
        return items
    parts: list[list[Any]] = [[] for _ in range(trainer.world_size)]
    torch.distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]


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


def end_with_parent() -> None:
    """Let Linux end this process with the one that started it, in whatever way that one ends.

    A rank that has lost the first one waits for it, on a GPU for minutes, and holds its memory.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, int(signal.SIGKILL))


def check_accelerator(name: str | None, key: str) -> None:
    """Say in our words that there is no GPU, before anything is built for it."""
    is_there = torch.cuda.is_available() or (name == "gpu" and torch.backends.mps.is_available())
    if name in ("gpu", "cuda") and not is_there:
        raise UserError(
            f"{key}={name}, but torch {torch.__version__} sees no GPU here; set {key}=cpu, or look "
            "at the driver (nvidia-smi) and at the build of torch"
        )


def advise_on_memory(config: DictConfig) -> str:
    """Say what to lower when memory ran out, with the numbers of this run."""
    data, trainer = config.data, config.trainer
    numbers = ""
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        peak = torch.cuda.max_memory_allocated()
        numbers = (
            f" (peak {peak / 2**30:.1f} GiB of {total / 2**30:.1f} GiB, {free / 2**30:.1f} free)"
        )
    tips = []
    if str(trainer.get("precision", "32-true")) in ("32", "32-true", "None"):
        tips.append("trainer.precision=bf16-mixed (about half)")
    batch = data.get("batch_size", 1)
    if batch > 1:
        half = batch // 2
        steps = trainer.get("accumulate_grad_batches", 1) * (batch // half)
        tips.append(f"data.batch_size={half} with trainer.accumulate_grad_batches={steps}")
    patch = data.get("patch", 128)
    if isinstance(patch, int) and patch > 64:
        tips.append(f"data.patch={patch - 32} (×{((patch - 32) / patch) ** 3:.2f})")
    return f"out of memory{numbers}; lower one of: {'; '.join(tips) or 'net.width'}"
