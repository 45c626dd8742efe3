"""Trainings that are killed without a word, and disks that are full."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bts_lightning import runs
from tests.test_train import TINY

ROOT = Path(__file__).parents[1]


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("BTS_", "PL_"))}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "bts_lightning", "train", *words]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def the_run(folder: Path) -> Path:
    (found,) = folder.glob("runs/*/*/config.yaml")
    return found.parent


def final(run: Path) -> dict[str, torch.Tensor]:
    newest = max((run / "checkpoints").glob("epoch_*.ckpt"))
    return dict(runs.read_checkpoint(newest)["state_dict"])


@pytest.mark.slow
def test_a_training_killed_again_and_again_ends_with_the_same_weights(
    phantom: Path, tmp_path: Path
) -> None:
    words = [*TINY, f"data.root={phantom}", "trainer.max_epochs=12", "data.steps_per_epoch=8"]
    words += ["trainer.limit_val_batches=0", "callbacks.best=null", "callbacks.subsets=null"]
    for name in ("undisturbed", "killed"):
        (tmp_path / name).mkdir()
    began = time.monotonic()
    whole = start(tmp_path / "undisturbed", *words)
    assert whole.wait(timeout=300) == 0, whole.stderr.read()  # type: ignore[union-attr]
    lasts = time.monotonic() - began
    chance = random.Random(0)
    process = start(tmp_path / "killed", *words)
    kills = 0
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
        # Late enough to have begun the epochs, which take a small part of the time.
        try:
            process.wait(timeout=lasts * chance.uniform(0.6, 0.95))
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            process.wait(timeout=60)
            kills += 1
        found = list((tmp_path / "killed").glob("runs/*/*/config.yaml"))
        again = [str(found[0].parent)] if found else words
        process = start(tmp_path / "killed", *again)
    assert process.wait(timeout=300) == 0, process.stderr.read()  # type: ignore[union-attr]
    assert kills
    expected, found_weights = (
        final(the_run(tmp_path / "undisturbed")),
        final(the_run(tmp_path / "killed")),
    )
    assert all(torch.equal(found_weights[name], value) for name, value in expected.items())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a disk of two megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small disk needs rights that this user lacks")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_is_one_line_and_leaves_whole_checkpoints(
    phantom: Path, small_disk: Path
) -> None:
    words = [*TINY, f"data.root={phantom}", "trainer.max_epochs=9", "net.width=16"]
    words += ["net.width_limit=64", "trainer.limit_val_batches=0", "callbacks.best=null"]
    process = start(small_disk, *words)
    _, printed = process.communicate(timeout=300)
    assert process.returncode == 2, printed
    line = next(line for line in printed.splitlines() if line.startswith("error: "))
    assert "no space left" in line.lower()
    for file in (the_run(small_disk) / "checkpoints").glob("*.ckpt"):
        runs.read_checkpoint(file)
