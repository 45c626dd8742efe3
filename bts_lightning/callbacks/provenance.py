"""What made a run: code, versions, machine, data and split."""

import json
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig

from bts_lightning.data.splits import PARTS
from bts_lightning.files import write_whole
from bts_lightning.loggers import Wandb
from bts_lightning.runs.facts import commit, machine, versions
from bts_lightning.runs.folder import check_split


class Provenance(Callback):
    """Write down what made a run: code, versions, machine, data and split."""

    def __init__(self, run: Path, config: DictConfig) -> None:
        self.run = run
        self.config = config

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write once the data are known."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        check_split(self.run, data, PARTS)
        if not trainer.is_global_zero:
            return
        facts = {
            "commit": commit(),
            "versions": versions(),
            "machine": machine(),
            "processes": trainer.world_size,
            "network": type(pl_module.net).__name__,
            "data_fingerprint": data.fingerprint,
            "split": {"name": data.split.name, "fingerprint": data.split.lists_fingerprint},
        }
        write_whole(self.run / "provenance.json", json.dumps(facts, indent=2) + "\n")
        data.split.save(self.run / "split.json")
        for logger in trainer.loggers:
            if isinstance(logger, Wandb):
                logger.use_data(data.fingerprint)
