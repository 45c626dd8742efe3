"""The smallest training, and what it leaves."""

import time
from pathlib import Path

import torch

from bts_lightning.__main__ import main
from bts_lightning.runs.checkpoints import read_checkpoint

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

# The same as a file, for verbs that start trainings by themselves.
TRAINING = """
extends: [unet_small]
net: {width: 4, poolings: 2}
data: {patch: 16, batch_size: 1, steps_per_epoch: 2, workers: 0, foreground: 0.0, augment: null}
trainer: {accelerator: cpu, max_epochs: 1, check_val_every_n_epoch: 1, precision: 32-true}
evaluation: {window: 32, mirror: false}
callbacks: {overlays: null}
"""


def train(*words: str) -> int:
    return main(["train", "--allow", "tests", *words])


def the_run(experiment: str = "*") -> Path:
    (found,) = Path("runs").glob(f"{experiment}/*/config.yaml")
    return found.parent


def weights(file: Path) -> dict[str, torch.Tensor]:
    return dict(read_checkpoint(file)["state_dict"])


def final(run: Path) -> dict[str, torch.Tensor]:
    return weights(max((run / "checkpoints").glob("epoch_*.ckpt")))


def wait_for(file: Path, seconds: float = 60) -> str:
    until = time.monotonic() + seconds
    while not file.exists() or not file.read_text().endswith("\n"):
        assert time.monotonic() < until, f"{file} did not appear"
        time.sleep(0.1)
    return file.read_text()
