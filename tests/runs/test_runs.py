"""Run folders and their checkpoints."""

import gc
import os
import re
import socket
import time
import warnings
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment

from bts_lightning import runs
from bts_lightning.commands.evaluate import evaluate
from bts_lightning.commands.train import train
from bts_lightning.errors import UserError
from bts_lightning.files import write_whole
from bts_lightning.runs import quiet, refuse_links
from bts_lightning.runs.checkpoints import check_resumable, load_weights, read_checkpoint
from bts_lightning.runs.lock import only_one
from bts_lightning.runs.processes import Process


@pytest.fixture(autouse=True)
def _no_run_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BTS_RUN", "SLURM_JOB_ID", "SLURM_PROCID", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(name, raising=False)


def make_run(folder: Path, age: float = 0) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 0\n")
    then = time.time() - age
    os.utime(folder / "config.yaml", (then, then))
    return folder


def test_nothing_is_said_of_srun_where_there_is_slurm(tmp_path: Path, monkeypatch):
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        SLURMEnvironment.detect()
        assert len(said) == 1, "Lightning has stopped saying it; the filters can go"
        quiet.hush()
        SLURMEnvironment.detect()
    assert len(said) == 1


def test_who_comes_second_is_told_who_is_there(tmp_path: Path):
    with only_one(tmp_path / "run", "training"):
        told = f"process {os.getpid()} on {socket.gethostname()} is at training {tmp_path / 'run'}"
        with (
            pytest.raises(UserError, match=re.escape(told)),
            only_one(tmp_path / "run", "training"),
        ):
            pass
    with only_one(tmp_path / "run", "training"):
        pass


def test_two_runs_in_one_second_get_two_folders(tmp_path: Path):
    first = make_run(runs.new_run("a2fseg", tmp_path))
    os.environ.pop("BTS_RUN")
    assert runs.new_run("a2fseg", tmp_path) != first


def test_children_of_a_run_find_its_folder(tmp_path: Path):
    folder = runs.new_run("a2fseg", tmp_path)
    assert runs.new_run("a2fseg", tmp_path / "elsewhere") == folder


def test_trials_of_a_sweep_never_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # Both in one Slurm job, as trials of one agent are.
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    folders = []
    for trial in ("one", "two"):
        monkeypatch.setenv("WANDB_RUN_ID", trial)
        folders.append(runs.new_run("rfnet", tmp_path))
        monkeypatch.delenv("BTS_RUN")
    assert folders == [tmp_path / "rfnet" / f"sweep-abc-{trial}" for trial in ("one", "two")]


def test_a_requeued_slurm_job_comes_back_to_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_PROCID", "3")
    first = make_run(runs.new_run("rfnet", tmp_path))
    os.environ.pop("BTS_RUN")
    assert runs.new_run("rfnet", tmp_path) == first == tmp_path / "rfnet" / "slurm-77"


def test_the_newest_run_of_an_experiment_is_found(tmp_path: Path):
    make_run(tmp_path / "a2fseg" / "1", age=100)
    newest = make_run(tmp_path / "a2fseg" / "2", age=10)
    make_run(tmp_path / "rfnet" / "3")
    assert runs.find_run(None, "a2fseg", tmp_path) == newest


def test_a_run_without_a_checkpoint_is_not_the_newest(tmp_path: Path):
    trained = make_run(tmp_path / "a2fseg" / "1", age=100)
    (trained / "checkpoints").mkdir(exist_ok=True)
    (trained / "checkpoints" / "epoch_0000.ckpt").touch()
    make_run(tmp_path / "a2fseg" / "2", age=10)
    assert runs.find_run(None, "a2fseg", tmp_path) == trained


def test_a_folder_that_is_no_run_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"is not a run: it has no config\.yaml"):
        runs.find_run(tmp_path)


def test_without_runs_the_known_experiments_are_listed(tmp_path: Path):
    make_run(tmp_path / "rfnet" / "1")
    with pytest.raises(UserError, match="there are runs of: rfnet"):
        runs.find_run(None, "a2fseg", tmp_path)


def test_a_truncated_checkpoint_is_named(tmp_path: Path):
    file = tmp_path / "last.ckpt"
    torch.save({"state_dict": {"x": torch.zeros(1000)}}, file)
    file.write_bytes(file.read_bytes()[:900])
    with pytest.raises(UserError, match=r"last\.ckpt cannot be read .* truncated"):
        read_checkpoint(file)


@pytest.mark.parametrize("name", ["evaluation", "logs/metrics.csv", "output.log", "checkpoints"])
def test_a_run_with_a_link_that_leads_out_is_not_written_into(tmp_path: Path, name: str):
    outside = tmp_path / "mine"
    outside.mkdir()
    run = tmp_path / "run"
    (run / "logs" / "wandb").mkdir(parents=True)
    (run / "config.yaml").write_text("seed: 0")
    # As wandb makes them.
    (run / "logs" / "wandb" / "latest-run").symlink_to("run-1")
    (tmp_path / "again").symlink_to(run)
    refuse_links(tmp_path / "again")
    (run / name).symlink_to(outside)
    with pytest.raises(UserError, match="a link that leads out of the run"):
        train([str(run)])
    if name in ("evaluation", "logs/metrics.csv"):
        with pytest.raises(UserError, match="a link that leads out of the run"):
            evaluate(run)
    else:
        refuse_links(run, "evaluation", "logs")


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path: Path):
    file = tmp_path / "evil.ckpt"
    torch.save({"state_dict": {}, "callback": os.system}, file)
    with pytest.raises(UserError, match=r"evil\.ckpt cannot be read"):
        read_checkpoint(file)


@pytest.mark.parametrize("kind", ["fifo", "folder", "gone"])
def test_what_is_no_file_is_no_checkpoint(tmp_path: Path, kind: str):
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints" / "best.ckpt"
    make = {"fifo": os.mkfifo, "folder": Path.mkdir, "gone": lambda p: p.symlink_to("nowhere")}
    make[kind](file)
    # Neither overlooked, for another one would take its place, nor waited for.
    assert runs.checkpoint_files(tmp_path) == [runs.best_checkpoint(tmp_path)] == [file]
    with pytest.raises(UserError, match=r"ckpt: not a regular file|there is no checkpoint"):
        read_checkpoint(file)


@pytest.mark.parametrize("weights", [5, [1], None, {"a": 1}, {1: torch.zeros(1)}])
def test_weights_of_a_wrong_kind_are_refused(tmp_path: Path, weights: object):
    torch.save({"state_dict": weights}, file := tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"a\.ckpt is not a checkpoint of a training"):
        read_checkpoint(file)


def test_a_bit_that_has_changed_is_noticed(tmp_path: Path):
    torch.save({"state_dict": {"x": torch.full((1000,), 1.5)}}, file := tmp_path / "a.ckpt")
    content = bytearray(file.read_bytes())
    content[content.index(torch.full((9,), 1.5).numpy().tobytes())] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.ckpt cannot be read \(.*data/0 is damaged\)"):
        read_checkpoint(file)


KEEPER = {
    "best_k_models": {"a.ckpt": torch.zeros(())},
    "kth_value": torch.zeros(()),
    "dirpath": "",
    "best_model_path": "",
    "kth_best_model_path": "",
    "last_model_path": "",
}
RESUMABLE = {
    "global_step": 3,
    "epoch": 1,
    "loops": {},
    "callbacks": {"ModelCheckpoint": KEEPER},
    "optimizer_states": [{}],
    "lr_schedulers": [],
    "pytorch-lightning_version": "2.6.0",
}


def test_a_training_goes_on_from_what_holds_all_that_it_needs():
    check_resumable(RESUMABLE, Path("a.ckpt"))
    wrong = [{k: v for k, v in RESUMABLE.items() if k != key} for key in RESUMABLE]
    wrong += [RESUMABLE | {key: None} for key in RESUMABLE]
    wrong += [RESUMABLE | {"global_step": -1}, RESUMABLE | {"optimizer_states": []}]
    for key in KEEPER:
        wrong.append(RESUMABLE | {"callbacks": {"ModelCheckpoint": KEEPER | {key: 5}}})
    for checkpoint in wrong:
        with pytest.raises(UserError, match=r"a\.ckpt holds .*so no training can go on from it"):
            check_resumable(checkpoint, Path("a.ckpt"))


def test_weights_of_another_network_are_refused_in_one_line(tmp_path: Path):
    with pytest.raises(UserError, match="trained with another network") as caught:
        load_weights(
            torch.nn.Linear(2, 2), {"state_dict": {"other": torch.zeros(1)}}, tmp_path / "a.ckpt"
        )
    assert "\n" not in str(caught.value)


def test_checkpoints_are_listed_newest_first_and_best_last(tmp_path: Path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for age, name in enumerate(("interrupted", "best", "epoch_0001", "epoch_0000")):
        file = folder / f"{name}.ckpt"
        file.write_bytes(b"")
        os.utime(file, (1000 - age, 1000 - age))
    names = [file.stem for file in runs.checkpoint_files(tmp_path)]
    assert names == ["interrupted", "epoch_0001", "epoch_0000", "best"]


def test_a_text_file_is_replaced_whole(tmp_path: Path):
    file = tmp_path / "a" / "table.csv"
    write_whole(file, "old")
    write_whole(file, "new")
    assert file.read_text() == "new"
    assert [p.name for p in file.parent.iterdir()] == ["table.csv"]


# Nobody is left to wait for the process, as after a kill.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_command_begins_once_its_worker_has_written_down_whose_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    command = ["touch", str(tmp_path / "begun")]
    assert Process(command, tmp_path / "run", {}).wait() == 0
    (tmp_path / "begun").unlink()

    def die(process: Process) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Process, "beat", die)
    with pytest.raises(KeyboardInterrupt):
        Process(command, tmp_path / "run", {})
    gc.collect()
    time.sleep(0.3)
    assert not (tmp_path / "begun").exists()
