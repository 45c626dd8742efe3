"""A training goes on with the optimizer that it began with."""

from typing import Any

from lightning import Callback, LightningModule, Trainer

from bts_lightning.errors import ConfigError

_PARTS = ("optimizer_states", "lr_schedulers")


class SameOptimizer(Callback):
    """Refuse the state of another optimizer, of which Lightning loads as much as it finds."""

    def __init__(self) -> None:
        self._counts: tuple[int, ...] | None = None

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Count what the checkpoint brings."""
        self._counts = tuple(len(checkpoint[part]) for part in _PARTS)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare, once the states were loaded."""
        if self._counts is None:
            return
        now = (len(trainer.optimizers), len(trainer.lr_scheduler_configs))
        lost = [
            name
            for optimizer in trainer.optimizers
            for group in optimizer.param_groups
            for name in sorted(optimizer.defaults.keys() - group.keys())
        ]
        if lost or now != self._counts:
            raise ConfigError(
                "the checkpoint is of a training with another optimizer or schedule"
                + (f", without {lost[0]}" if lost else "")
                + "; go on with the one that it began with"
            )
