"""Sweeps with wandb's own client, agent and wandb-core against a server on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from bts_lightning.files import sha256
from tests.tiny_training import TRAINING
from tests.wandb_server import serve

# A trial that logs as a training does, without one.
PROGRAM = """
import sys
import wandb
values = dict(word.split("=", 1) for word in sys.argv[1:])
run = wandb.init()
for step in range(3):
    run.log({"val/dice/mean": float(values["task.optimizer.lr"]) * step})
run.finish(exit_code=int(values["net.width"]) > 4)
sys.exit(int(values["net.width"]) > 4)
"""
METRIC = {"name": "val/dice/mean", "goal": "maximize"}


def bts(folder: Path, address: str, *words: str, code: int = 0, **more: str) -> str:
    """Run `bts` in a folder, logged in to a server; gives what it printed."""
    environment = os.environ | {
        "WANDB_BASE_URL": address,
        "WANDB_API_KEY": "0" * 40,
        "HOME": str(folder),
        "CUDA_VISIBLE_DEVICES": "",
    }
    environment.pop("BTS_RUN", None)
    done = subprocess.run(
        [sys.executable, "-m", "bts_lightning", *words],
        cwd=folder,
        env=environment | more,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def write_tiny(folder: Path, text: str = TRAINING) -> None:
    (folder / "experiments").mkdir()
    (folder / "experiments" / "tiny.yaml").write_text(text)


@pytest.mark.slow
def test_the_agent_runs_every_cell_though_one_fails(tmp_path: Path):
    (tmp_path / "program.py").write_text(PROGRAM)
    file = tmp_path / "mine.yaml"
    tree = {
        "name": "that of the file",
        "command": ["${env}", "${interpreter}", "program.py", "${args_no_hyphens}"],
        "method": "grid",
        "metric": METRIC,
        "parameters": {"net.width": {"values": [8, 4]}, "task.optimizer.lr": {"value": 0.5}},
    }
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    with serve() as (server, address):
        words = ["--sweep", str(file), "--project", "mine", "--name", "that of the line"]
        printed = bts(tmp_path, address, "sweep", *words)
    assert server.sweeps["sweep0"]["name"] == "that of the line"
    assert "join    bts agent somebody/mine/sweep0" in printed
    failed, finished = server.runs.values()
    assert (failed.state, finished.state) == ("failed", "finished")
    assert finished.curve("val/dice/mean") == [0.0, 0.5, 1.0]
    assert finished.config["net.width"] == 4


def test_without_an_account_it_says_what_to_do(tmp_path: Path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    done = subprocess.run(
        [sys.executable, "-m", "bts_lightning", "agent", "somebody/mine/sweep0"],
        env=environment | {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: no W&B account is set up here")
    assert "--local" in done.stderr
    assert len(done.stderr.splitlines()) == 1


LOGGING = """
from bts_lightning.loggers import Wandb
logger = Wandb(save_dir="runs/a/1/logs")
logger.log_metrics({"val/dice/mean": 0.5}, step=0)
print("offline" if logger.experiment.offline else "online")
"""


@pytest.mark.slow
def test_a_server_that_does_not_answer_stops_no_training(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", LOGGING],
        cwd=tmp_path,
        # Nothing listens at port 9; wandb would try for 90 seconds.
        env=os.environ
        | {
            "WANDB_BASE_URL": "http://127.0.0.1:9",
            "WANDB_API_KEY": "0" * 40,
            "WANDB_INIT_TIMEOUT": "2",
            "HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "offline" in done.stdout
    assert "wandb sync" in done.stderr
    assert list(tmp_path.glob("runs/a/1/logs/wandb/offline-run-*/*.wandb"))


@pytest.mark.slow
def test_trainings_are_swept(tmp_path: Path, phantom: Path):
    write_tiny(tmp_path)
    file = tmp_path / "mine.yaml"
    # With the second the loss is not a number after one step.
    rates = [0.001, 1e30, 0.01]
    parameters = {"task.optimizer.lr": {"values": rates}, "net.width": {"values": [4, 6]}}
    tree = {"method": "grid", "metric": METRIC, "parameters": parameters}
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    with serve() as (server, address):
        bts(tmp_path, address, "sweep", "tiny", f"data.root={phantom}", "--sweep", str(file))
    runs = list(server.runs.values())
    for run in runs:
        given = run.args["task.optimizer.lr"], run.args["net.width"]
        told = run.config["task"]["optimizer"]["lr"], run.config["net"]["width"]
        assert given == told
        assert (run.config["task.optimizer.lr"], run.config["net.width"]) == given
    states = {run.args["task.optimizer.lr"]: set() for run in runs}
    for run in runs:
        states[run.args["task.optimizer.lr"]].add(run.state)
    assert states == {0.001: {"finished"}, 1e30: {"failed"}, 0.01: {"finished"}}
    assert len(runs) == 6
    assert all(len(run.curve("val/dice/mean")) == 1 for run in runs if run.state == "finished")


@pytest.mark.slow
def test_evaluations_of_trials_stand_in_the_runs_of_their_trainings(tmp_path: Path, phantom: Path):
    write_tiny(tmp_path)
    file = tmp_path / "mine.yaml"
    parameters = {"net.width": {"values": [4, 6]}}
    tree = {"method": "grid", "metric": METRIC, "parameters": parameters}
    file.write_text(yaml.safe_dump(tree))
    with serve() as (server, address):
        words = ["tiny", f"data.root={phantom}", "--sweep", str(file), "--project", "mine"]
        bts(tmp_path, address, "sweep", *words)
        folders = [found.parent for found in tmp_path.glob("runs/tiny/*/config.yaml")]
        for folder in folders:
            bts(tmp_path, address, "evaluate", str(folder))
            bts(tmp_path, address, "evaluate", str(folder), "--part", "val")
    assert len(server.runs) == 2
    assert {folder.name for folder in folders} == {f"sweep-sweep0-{name}" for name in server.runs}
    for run in sorted(server.runs.values(), key=lambda run: float(run.summary["test/dice/ET"])):
        assert run.curve("val/dice/mean") == [run.summary["val/dice/mean"]]
        (folder,) = (found for found in folders if found.name.endswith(run.name))
        rows = pd.read_csv(folder / "evaluation" / "test" / "cases.csv")
        for metric in ("dice", "hd95"):
            for region, cells in rows.groupby("region"):
                mean = cells.groupby("subset")[metric].mean().mean()
                assert run.summary[f"test/{metric}/{region}"] == pytest.approx(mean)
        seen = rows.subset.str.contains("t1c")
        for name, chosen in (("with_t1c", seen), ("without_t1c", ~seen)):
            assert run.summary[f"test/dice/{name}"] == pytest.approx(rows[chosen].dice.mean())
        # The numbers of the training keep their names.
        assert "evaluation/val/dice/ET" in run.summary
        # One table and one heat map, no panel of a cell.
        assert [name for name in run.history[-1] if name.startswith("val/")] == []
        assert len(run.curve("val/subsets")) == len(run.curve("val/heat_map")) == 1
        assert not [name for row in run.history for name in row if "t1+t1c/" in name]
        # Data, run, evaluation.
        (data,) = set(run.used)
        assert data.startswith("data-")
        assert {f"evaluation-{run.name}-test", f"evaluation-{run.name}-val"} <= set(run.made)
        assert f"model-{run.name}" not in run.made
    held = {made["name"]: made for made in server.artifacts.values()}
    evaluation = held[f"evaluation-{run.name}-test"]
    assert sorted(evaluation["files"]) == ["cases.csv", "protocol.json", "summary.md"]
    assert evaluation["metadata"]["data_fingerprint"].startswith(data.removeprefix("data-"))


@pytest.mark.slow
def test_what_was_done_offline_is_one_run_once_it_is_synced(tmp_path: Path, phantom: Path):
    write_tiny(tmp_path)
    with serve() as (server, address):
        words = ["tiny", f"data.root={phantom}", "logger.wandb.checkpoints=best"]
        bts(tmp_path, address, "train", *words, WANDB_MODE="offline")
        (run,) = (found.parent for found in tmp_path.glob("runs/tiny/*/config.yaml"))
        # Another place has another name after its path, but this is still that run.
        moved = run.rename(tmp_path / "moved")
        bts(tmp_path, address, "evaluate", str(moved), WANDB_MODE="offline")
        bts(tmp_path, address, "evaluate", str(moved), "--part", "val", WANDB_MODE="offline")
        assert server.runs == {}
        parts = sorted((moved / "logs" / "wandb").glob("offline-run-*"))
        assert len(parts) == 3
        # The last one first: each holds the numbers of those before it.
        command = [sys.executable, "-m", "wandb", "sync", *map(str, parts)]
        environment = {"WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40, "HOME": str(tmp_path)}
        subprocess.run(
            command, cwd=tmp_path, check=True, env=os.environ | environment, capture_output=True
        )
        bts(tmp_path, address, "evaluate", str(moved), "--name", "again")
    (synced,) = server.runs.values()
    assert len(synced.curve("val/dice/mean")) == 1
    assert {"val/dice/mean", "test/dice/ET", "again/dice/ET"} <= synced.summary.keys()
    assert synced.summary["test/dice/ET"] == synced.summary["again/dice/ET"]
    assert "val/t1c/dice/ET" not in synced.summary
    assert f"model-{synced.name}" in synced.made
    (model,) = (a for a in server.artifacts.values() if a["type"] == "model")
    assert model["metadata"]["checkpoint_sha256"] == sha256(moved / "checkpoints" / "best.ckpt")
    assert "best" in model["aliases"]


@pytest.mark.slow
def test_a_loss_that_is_no_number_is_an_alert_and_panels_come_back(tmp_path: Path, phantom: Path):
    write_tiny(tmp_path)
    words = ["tiny", f"data.root={phantom}", "logger.wandb.panels=true"]
    with serve() as (server, address):
        bts(tmp_path, address, "train", *words, "logger.wandb.checkpoints=all")
        bts(tmp_path, address, "train", *words, "task.optimizer.lr=1e30", code=2)
    good, bad = server.runs.values()
    assert len(good.curve("val/t1+t1c/dice/WT")) == len(good.curve("val/heat_map")) == 1
    models = [a["metadata"] for a in server.artifacts.values() if a["type"] == "model"]
    assert good.made.count(f"model-{good.name}") == 2
    assert {m["original_filename"] for m in models} == {"best.ckpt", "epoch_0000.ckpt"}
    assert good.alerts == []
    assert (bad.state, len(bad.alerts)) == ("failed", 1)
    ((level, text),) = bad.alerts
    assert level == "ERROR"
    assert "lower task.optimizer.lr" in text
