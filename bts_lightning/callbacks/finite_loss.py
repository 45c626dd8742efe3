"""Stop a training whose loss is no number, and say which cases made it so."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from bts_lightning.callbacks.preemption import state_folder
from bts_lightning.errors import EveryRankError
from bts_lightning.loggers import Wandb
from bts_lightning.modalities import subset_name
from bts_lightning.runs.ranks import from_all_ranks


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
        file = state_folder(trainer, "before_nonfinite")
        trainer.save_checkpoint(file, weights_only=False)
        guilty = from_all_ranks(trainer, [] if own.isfinite() else [(float(own), self._cases())])
        cases = [case for _, names in guilty for case in names]
        said = (
            f"the loss is {guilty[0][0]} in epoch {trainer.current_epoch}, "
            f"step {trainer.global_step}, for {', '.join(cases)}; the weights before this step are "
            f"in {file}. Look at these cases, or lower task.optimizer.lr"
        )
        for logger in trainer.loggers:
            if isinstance(logger, Wandb):
                logger.alert(said)
        raise EveryRankError(said)

    def _cases(self) -> list[str]:
        batch = self._batch or {}
        return [
            f"{case} ({subset_name(row)})"
            for case, row in zip(batch["case"], batch["present"].tolist(), strict=True)
        ]
