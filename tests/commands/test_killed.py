"""Trainings that are killed without a word, and disks that are full."""

import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bts_lightning.commands.fit import _is_first_of_two
from bts_lightning.files import write_whole
from bts_lightning.loggers import read_metrics
from bts_lightning.runs.checkpoints import read_checkpoint
from tests.tiny_training import NOT_VALIDATED, TINY

ROOT = Path(__file__).parents[2]


def start(folder: Path, *words: str, leads_group: bool = False) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("BTS_", "PL_"))}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "bts_lightning", "train", "--allow", "tests", *words]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=leads_group,
    )  # fmt: skip


def the_run(folder: Path) -> Path:
    (found,) = folder.glob("runs/*/*/config.yaml")
    return found.parent


def final(run: Path) -> dict[str, torch.Tensor]:
    newest = max((run / "checkpoints").glob("epoch_*.ckpt"))
    return dict(read_checkpoint(newest)["state_dict"])


def wait_for_step(folder: Path, process: subprocess.Popen[str], step: int) -> None:
    """Wait until the curves have a step, however slow the machine is today."""
    until = time.monotonic() + 300
    while time.monotonic() < until and process.poll() is None:
        for file in folder.glob("runs/*/*/logs/metrics.csv"):
            seen = read_metrics(file).get("train/loss", [])
            if seen and seen[-1][0] >= step:
                return
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached: {process.communicate()[1]}")


def killed_at(folder: Path, words: list[str], steps: dict[int, signal.Signals]) -> Path:
    """Train, kill at each of the steps, go on, and give the finished run."""
    folder.mkdir()
    process = start(folder, *words)
    for step, number in steps.items():
        wait_for_step(folder, process, step)
        process.send_signal(number)
        process.communicate(timeout=120)
        assert process.returncode == (2 if number == signal.SIGTERM else -number)
        process = start(folder, str(the_run(folder)))
    _, printed = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    return the_run(folder)


def assert_killing_changes_nothing(
    phantom: Path, folder: Path, epochs: int, steps: dict[int, signal.Signals]
) -> None:
    words = [
        *TINY,
        f"data.root={phantom}",
        f"trainer.max_epochs={epochs}",
        "data.steps_per_epoch=8",
    ]
    words += ["trainer.limit_val_batches=0", "callbacks.best=null", "callbacks.subsets=null"]
    # Slow enough to be hit in the step that is meant.
    words += ["callbacks.slow._target_=tests.training_parts.SlowSteps"]
    undisturbed = killed_at(folder / "undisturbed", words, {})
    killed = killed_at(folder / "killed", words, steps)
    found = final(killed)
    assert all(torch.equal(found[name], value) for name, value in final(undisturbed).items())
    curves = [read_metrics(run / "logs/metrics.csv") for run in (undisturbed, killed)]
    assert curves[0]["train/loss"] == curves[1]["train/loss"]


def test_only_the_first_epoch_is_repeated_and_only_from_the_best(tmp_path: Path) -> None:
    states = {"best": {"best_k_models": {"best.ckpt": 0.1}}, "recent": {"best_k_models": {}}}
    content = {"global_step": 3, "optimizer_states": [{}], "callbacks": states}
    folder = tmp_path / "checkpoints"
    assert _is_first_of_two(folder / "best.ckpt", content)
    assert not _is_first_of_two(folder / "epoch_0000.ckpt", content), "nothing was validated yet"
    write_whole(tmp_path / "logs" / "metrics.csv", "step,metric,value\n3,train/loss,1.0\n")
    assert not _is_first_of_two(folder / "best.ckpt", content), "all others were deleted since"


def test_workers_go_on_until_a_training_that_is_stopped_has_saved(
    phantom: Path, tmp_path: Path
) -> None:
    words = [*TINY, f"data.root={phantom}", "data.steps_per_epoch=400", "data.workers=1"]
    words += ["trainer.limit_val_batches=0", "callbacks.best=null", "callbacks.subsets=null"]
    words += ["data.transforms.flip._target_=torchio.RandomFlip"]  # read by processes
    process = start(tmp_path, *words, leads_group=True)
    wait_for_step(tmp_path, process, 2)
    os.killpg(process.pid, signal.SIGTERM)
    _, printed = process.communicate(timeout=120)
    assert "stopped by SIGTERM" in printed
    assert process.returncode == 2
    assert (the_run(tmp_path) / "checkpoints" / "interrupted.ckpt").exists()


@pytest.mark.slow
def test_a_training_killed_again_and_again_ends_with_the_same_weights(
    phantom: Path, tmp_path: Path
) -> None:
    steps = sorted(random.Random(0).sample(range(96), 5))
    signals = [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGTERM, signal.SIGKILL]
    assert_killing_changes_nothing(phantom, tmp_path, 12, dict(zip(steps, signals, strict=True)))


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
        read_checkpoint(file)


@pytest.mark.slow
def test_nohup_outlives_its_terminal_and_a_terminal_that_ends_saves(
    phantom: Path, tmp_path: Path
) -> None:
    words = [*TINY, f"data.root={phantom}", "data.steps_per_epoch=40", "data.workers=1"]
    words += ["trainer.limit_val_batches=0", "callbacks.best=null", "callbacks.subsets=null"]
    for name, ignored in (("nohup", True), ("plain", False)):
        folder = tmp_path / name
        folder.mkdir()
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
        process = start(folder, *words)
        signal.signal(signal.SIGHUP, before)
        wait_for_step(folder, process, 2)
        process.send_signal(signal.SIGHUP)
        _, printed = process.communicate(timeout=120)
        assert process.returncode == (0 if ignored else 2), printed
        assert ("stopped by SIGHUP" in printed) == (not ignored)


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["head -n 1", "cat", "true"])
def test_a_training_behind_a_pipe_says_no_more_than_its_lines(
    reader: str, phantom: Path, tmp_path: Path
) -> None:
    words = [*TINY, *NOT_VALIDATED, f"data.root={phantom}", "trainer.max_epochs=3"]
    training = shlex.join([sys.executable, "-m", "bts_lightning", "train", *words])
    done = subprocess.run(
        ["bash", "-c", f"{training} | {reader}; echo ${{PIPESTATUS[0]}}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == ("0" if reader == "cat" else "1")
