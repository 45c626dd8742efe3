"""The smallest training, and what it leaves."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from omegaconf import OmegaConf

from bts_lightning import runs
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
TWO = ["trainer.devices=2", "trainer.strategy=ddp"]
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


def bts(*words: str, folder: Path, code: int = 0) -> str:
    """Run the command line in a process of its own, as ranks start others by running it again.

    Gives what was printed as errors, by all ranks.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("BTS_", "PL_"))}
    # What stands there may hide packages; see `test_bare.py`.
    path = os.pathsep.join([str(Path(__file__).parents[1]), environment.get("PYTHONPATH", "")])
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": path.rstrip(os.pathsep)}
    process = subprocess.Popen(
        [sys.executable, "-m", "bts_lightning", *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, printed = process.communicate(timeout=500)
    except subprocess.TimeoutExpired:
        # A rank that has lost the others waits half an hour for them, and holds the pipes.
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"no end in sight: {process.communicate()[1][-3000:]}") from None
    assert process.returncode == code, printed[-3000:]
    return printed


def another(run: Path, where: Path, seed: int, **changes: object) -> Path:
    """Copy a run, with other weights and another configuration."""
    copy = Path(shutil.copytree(run, where))
    (file,) = (copy / "checkpoints").glob("*.ckpt")
    content = read_checkpoint(file)
    source = torch.Generator().manual_seed(seed)
    for name, value in content["state_dict"].items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=source)
            content["state_dict"][name] = value + 0.2 * noise
    torch.save(content, file)
    config = OmegaConf.load(runs.config_file(copy))
    for key, value in changes.items():
        OmegaConf.update(config, key.replace("__", "."), value, force_add=True)
    runs.save_config(copy, config)
    return copy
