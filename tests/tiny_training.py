"""The smallest training, and what it leaves."""

from pathlib import Path

import torch

from bts_lightning import runs
from bts_lightning.__main__ import main

TINY = [
    "a2fseg",
    "smoke",
    "net.width=4",
    "net.poolings=2",
    "net.width_limit=8",
    "data.patch=16",
    "data.steps_per_epoch=3",
    "trainer.max_epochs=2",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.deterministic=true",
    "trainer.check_val_every_n_epoch=2",
    "evaluation.subsets=[flair,t1+t1c+t2+flair]",
    "callbacks.overlays=null",
    "data.augment.affine.p_rotation=0.5",
    "data.augment.noise.p=0.5",
]
NOT_VALIDATED = ["trainer.limit_val_batches=0", "callbacks.best=null", "callbacks.subsets=null"]


def train(*words: str) -> int:
    return main(["train", "--allow", "tests", *words])


def the_run(experiment: str = "*") -> Path:
    (found,) = Path("runs").glob(f"{experiment}/*/config.yaml")
    return found.parent


def weights(file: Path) -> dict[str, torch.Tensor]:
    return dict(runs.read_checkpoint(file)["state_dict"])


def final(run: Path) -> dict[str, torch.Tensor]:
    return weights(max((run / "checkpoints").glob("epoch_*.ckpt")))
