"""Trainings and evaluations on a card, by the command line as users give it."""

import os
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.gpu.conftest import TWIN
from tests.tiny_training import NOT_VALIDATED, TINY, bts, final

RUN = "runs/a2fseg+smoke"


@pytest.fixture
def words(phantom: Path, accelerator: str) -> list[str]:
    # What stands last counts.
    return [*TINY, f"trainer.accelerator={accelerator}", f"data.root={phantom}", "--allow", "tests"]


def only_run(folder: Path) -> Path:
    (found,) = (folder / RUN).iterdir()
    return found


def is_same(run: Path, other: Path) -> bool:
    mine, others = final(run), final(other)
    return all(torch.equal(mine[name], others[name]) for name in mine)


def test_a_stopped_training_goes_on_bit_for_bit(words: list[str], tmp_path: Path) -> None:
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    bts("train", *words, folder=tmp_path / "whole")
    stop = ["callbacks.stop._target_=tests.training_parts.SignalAt", "callbacks.stop.step=4"]
    said = bts("train", *words, *stop, folder=tmp_path / "stopped", code=2)
    assert "stopped by SIGTERM" in said
    run = only_run(tmp_path / "stopped")
    bts("train", str(run), "--allow", "tests", "callbacks.stop=null", folder=tmp_path / "stopped")
    assert is_same(run, only_run(tmp_path / "whole"))


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_trains_and_scores(
    words: list[str], tmp_path: Path, precision: str, accelerator: str
) -> None:
    if accelerator == "cpu" and precision == "16-mixed":
        pytest.skip("Lightning has 16-mixed for GPUs alone")
    bts("train", *words, f"trainer.precision={precision}", folder=tmp_path)
    run = only_run(tmp_path)
    bts("evaluate", str(run), folder=tmp_path)
    assert pd.read_csv(run / "evaluation" / "test" / "cases.csv")["dice"].between(0, 1).all()


def test_one_rank_of_a_group_learns_what_one_process_learns(
    words: list[str], tmp_path: Path
) -> None:
    """With NCCL on a card: a group of one has all of its machinery."""
    alone, group = tmp_path / "alone", tmp_path / "group"
    for folder in (alone, group):
        folder.mkdir()
    bts("train", *words, *NOT_VALIDATED, folder=alone)
    bts("train", *words, *NOT_VALIDATED, "trainer.strategy=ddp", folder=group)
    assert is_same(only_run(alone), only_run(group))


def test_memory_that_runs_out_is_a_line_with_advice(
    words: list[str], tmp_path: Path, accelerator: str
) -> None:
    part = "TightMemory" if accelerator == "gpu" else "OutOfMemoryAt"
    where = f"callbacks.full._target_=tests.training_parts.{part}"
    size = [] if accelerator == "cpu" else ["data.patch=48", "net.width=16", "net.width_limit=64"]
    said = bts("train", *words, *size, where, "callbacks.full.step=1", folder=tmp_path, code=2)
    line = next(line for line in said.splitlines() if line.startswith("error: "))
    assert "out of memory; lower one of: " in line


def test_what_this_battery_ran_on(card: torch.device) -> None:
    """Say it in the report: pass `-rP`."""
    name = torch.cuda.get_device_name(card) if card.type == "cuda" else f"{os.cpu_count()} cores"
    print(f"torch {torch.__version__} on {name}{', the twin' if TWIN else ''}")
