"""Curves of a training that was killed, equal to those of one that was not."""

from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities.apply_func import convert_tensors_to_scalars

from bts_lightning.loggers import Csv
from bts_lightning.runs.ranks import from_all_ranks

CURVES = "curves"
_SUMS = "sums_of_the_epoch"


class ExactCurves(Callback):
    """Write the rows that a checkpoint covers before it, and keep the epoch's sums in it.

    Lightning logs an epoch after its checkpoint, so a kill between the two would lose the rows for
    good; and it forgets the sums of an epoch's means, so these would be over the part after the
    resume.
    """

    def __init__(self) -> None:
        self._carried: dict[str, tuple[float, int]] = {}

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Do both; every rank is here, as it is for the checkpoint."""
        if trainer.training:
            _write_rows(trainer)
        steps = trainer.global_step // max(1, len(trainer.optimizers))
        checkpoint[CURVES] = {
            logger.file.name: logger.seal(steps)
            for logger in trainer.loggers
            if isinstance(logger, Csv) and trainer.is_global_zero and logger.file.exists()
        }
        if not trainer.is_last_batch:
            own = {**self._carried, **_sums(trainer)}
            checkpoint[_SUMS] = from_all_ranks(trainer, [own])

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the sums of this rank."""
        ranks = checkpoint.get(_SUMS, [])
        self._carried = dict(ranks[trainer.global_rank]) if trainer.global_rank < len(ranks) else {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add what was carried to the sums, once the first step after a resume has begun them."""
        results = trainer.fit_loop.epoch_loop._results
        for key in self._carried.keys() & results.keys():
            metric, (value, count) = results[key], self._carried.pop(key)
            metric.value = metric.value + value
            metric.cumulated_batch_size = metric.cumulated_batch_size + count
            metric._computed = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self._carried = {}


def _sums(trainer: Trainer) -> dict[str, tuple[float, int]]:
    return {
        key: (float(metric.value), int(metric.cumulated_batch_size))
        for key, metric in trainer.fit_loop.epoch_loop._results.items()
        if metric.is_tensor
        and metric.meta.on_epoch
        and metric.meta.is_mean_reduction
        and not metric.has_reset
    }


def _write_rows(trainer: Trainer) -> None:
    """Log now what Lightning logs after the hook that saves, under the step that it gives."""
    connector, loop = trainer._logger_connector, trainer.fit_loop.epoch_loop
    epoch_ended = connector._first_loop_iter is None
    batches: Any = loop.batch_progress.current
    in_a_step = batches.processed != batches.ready
    if not epoch_ended and (
        in_a_step or loop._should_accumulate() or not connector.should_update_logs
    ):
        return
    metrics = convert_tensors_to_scalars(connector.metrics["log"])
    if not metrics:
        return
    for logger in trainer.loggers:
        if isinstance(logger, Csv):
            step = loop._batches_that_stepped - int(epoch_ended)
            logger.log_ahead({**metrics, "epoch": trainer.current_epoch}, step)
