"""Sweeps with wandb's own client, agent and wandb-core against a server on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

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


def sweep(folder: Path, address: str, *words: str, seconds: float = 240) -> str:
    """Run `bts sweep` in a folder, logged in to a server; gives what it printed."""
    environment = os.environ | {
        "WANDB_BASE_URL": address,
        "WANDB_API_KEY": "0" * 40,
        "HOME": str(folder),
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, "-m", "bts_lightning", "sweep", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


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
        printed = sweep(tmp_path, address, *words)
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
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "tiny.yaml").write_text(TRAINING)
    file = tmp_path / "mine.yaml"
    # With the second the loss is not a number after one step.
    rates = [0.001, 1e30, 0.01]
    parameters = {"task.optimizer.lr": {"values": rates}, "net.width": {"values": [4, 6]}}
    tree = {"method": "grid", "metric": METRIC, "parameters": parameters}
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    with serve() as (server, address):
        sweep(tmp_path, address, "tiny", f"data.root={phantom}", "--sweep", str(file), seconds=900)
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
