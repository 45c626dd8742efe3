"""What docs/cluster.md promises, under a real Slurm of three nodes on this machine.

Skipped where Slurm is not installed. `python -m pytest -m slow tests/cluster -rA` names each.
"""

import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch

from bts_lightning.loggers import read_metrics
from tests.cluster.slurm import Cluster, why_not
from tests.tiny_training import TRAINING, TWO, bts, final

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]
BTS = f"{shlex.quote(sys.executable)} -P -m bts_lightning"
TWO_NODES = "#SBATCH --nodes=2 --ntasks-per-node=1\n"
ON_TWO_NODES = ["trainer.num_nodes=2", "trainer.devices=1", "trainer.strategy=ddp"]
# Long enough that a signal finds it in the middle of an epoch.
WORDS = ["tiny", "data.steps_per_epoch=60", "trainer.max_epochs=2", "trainer.deterministic=true"]
WORDS += ["trainer.log_every_n_steps=1", "logger.wandb=null"]
# It also keeps what a job said before it was started again, as docs/cluster.md has it.
REQUEUED = "#SBATCH --requeue\n#SBATCH --open-mode=append\n"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("slurm")) as started:
        # The nodes' names are known to this cluster alone, and rank 0 is asked for by name.
        settings = {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        started.environment |= settings | {"PYTHONPATH": str(Path(__file__).parents[2])}
        yield started


@pytest.fixture
def here(tmp_path: Path, phantom: Path) -> Path:
    """Give a folder with a tiny experiment on the phantom."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "tiny.yaml").write_text(
        TRAINING.replace("data: {", f"data: {{root: {phantom}, ")
    )
    return tmp_path


def job(*words: str, head: str = "") -> str:
    start = f"srun --kill-on-bad-exit=1 {BTS} "
    return f"#!/bin/bash\n{head}{start}{shlex.join(words)}\n"


def said(cluster: Cluster, number: str) -> str:
    return "".join(Path(one["StdOut"]).read_text() for one in cluster.facts(number))


def steps(run: Path) -> int:
    """Count the steps whose loss is written down."""
    file = run / "logs" / "metrics.csv"
    return len(read_metrics(file).get("train/loss", [])) if file.is_file() else 0


def is_same(run: Path, other: Path) -> bool:
    mine, others = final(run), final(other)
    return mine.keys() == others.keys() and all(torch.equal(mine[k], others[k]) for k in mine)


def wait_for_restart(cluster: Cluster, number: str, times: int) -> None:
    """Wait until Slurm has taken a job back, and let it begin at once: that is in two minutes."""

    def taken_back() -> bool:
        (facts,) = cluster.facts(number)
        return int(facts["Restarts"]) == times and facts["JobState"] == "PENDING"

    cluster.until(taken_back, f"no requeue {times}", 90)
    cluster.run("scontrol", "update", f"JobId={number}", "StartTime=now")


def interrupt(cluster: Cluster, number: str, run: Path) -> None:
    """Send what `--signal=SIGUSR1@120` sends when the time is nearly over, in an epoch."""
    before = steps(run)
    cluster.until(lambda: steps(run) not in (before, 0), "no step")
    cluster.run("scancel", "--signal=USR1", number)


def test_two_nodes_train_through_two_requeues_and_evaluate(cluster: Cluster, here: Path) -> None:
    number = cluster.submit(job("train", *WORDS, *ON_TWO_NODES, head=TWO_NODES + REQUEUED), here)
    run = here / "runs" / "tiny" / f"slurm-{number}"
    for times in (1, 2):
        interrupt(cluster, number, run)
        wait_for_restart(cluster, number, times)
    assert cluster.wait(number, 180) == ["COMPLETED"], said(cluster, number)
    assert said(cluster, number).count("stopped by SIGUSR1") == 2
    bts("train", *WORDS, *TWO, folder=_with_experiments(here, "alone"))
    (alone,) = (here / "alone" / "runs" / "tiny").iterdir()
    assert is_same(run, alone)

    number = cluster.submit(job("evaluate", str(run), *ON_TWO_NODES, head=TWO_NODES), here)
    assert cluster.wait(number, 180) == ["COMPLETED"], said(cluster, number)
    # The same weights, on one process.
    bts("evaluate", str(run), "--name", "alone", "trainer.devices=1", folder=here)
    two, one = (pd.read_csv(run / "evaluation" / name / "cases.csv") for name in ("test", "alone"))
    pd.testing.assert_frame_equal(two, one)


def test_a_node_that_dies_costs_what_was_not_saved(cluster: Cluster, here: Path) -> None:
    number = cluster.submit(job("train", *WORDS, *ON_TWO_NODES, head=TWO_NODES + REQUEUED), here)
    run = here / "runs" / "tiny" / f"slurm-{number}"
    cluster.until(lambda: steps(run) > 65, "the first epoch did not end")
    cluster.kill_node("n2")
    began = time.monotonic()
    cluster.until(lambda: cluster.states(number) != ["RUNNING"], "nobody missed the node")
    assert time.monotonic() - began < 60
    wait_for_restart(cluster, number, 1)
    assert cluster.wait(number, 240) == ["COMPLETED"], said(cluster, number)
    assert "going on from epoch_0000.ckpt" in said(cluster, number)
    bts("train", *WORDS, *TWO, folder=_with_experiments(here, "alone"))
    (alone,) = (here / "alone" / "runs" / "tiny").iterdir()
    assert is_same(run, alone)


def test_a_job_that_is_cancelled_goes_on_by_hand(cluster: Cluster, here: Path) -> None:
    number = cluster.submit(job("train", *WORDS), here)
    run = here / "runs" / "tiny" / f"slurm-{number}"
    cluster.until(lambda: steps(run) > 10, "no step")
    cluster.run("scancel", number)
    assert cluster.wait(number, 60) == ["CANCELLED"]
    cluster.until((run / "checkpoints" / "interrupted.ckpt").is_file, "no state was saved", 15)
    bts("train", str(run), folder=here)
    bts("train", *WORDS, folder=_with_experiments(here, "alone"))
    (alone,) = (here / "alone" / "runs" / "tiny").iterdir()
    assert is_same(run, alone)


def submit_study(cluster: Cluster, here: Path, *words: str) -> tuple[str, str]:
    """Give what `bts study --slurm` prints to a shell; give the numbers of the two jobs."""
    words = (*words, "--name", "x", "trainer.accelerator=cpu", "--slurm")
    command = [sys.executable, "-P", "-m", "bts_lightning", "study", *words]
    command += ["--sbatch=--cpus-per-task=1 --time=10"]
    environment = cluster.environment
    printed = subprocess.run(
        command, cwd=here, env=environment, check=True, capture_output=True, text=True
    )
    (here / "study.sh").write_text(printed.stdout)
    told = cluster.run("bash", "-c", f"cd {shlex.quote(str(here))} && bash study.sh")
    found = re.fullmatch(
        r"trainings: job (\d+); table: job (\d+), in studies/x/study.html\s*", told
    )
    assert found is not None, told
    return found[1], found[2]


def test_a_study_is_an_array_and_a_table(cluster: Cluster, here: Path) -> None:
    """Two of its four trainings cannot be done; the table says which, and why."""
    (here / "experiments" / "broken.yaml").write_text("data: {patch: 18}\n")
    array, table = submit_study(cluster, here, "tiny 'tiny broken'", "--seeds", "2")
    assert sorted(cluster.wait(array, 240)) == ["COMPLETED"] * 2 + ["FAILED"] * 2
    cluster.wait(table, 120)
    page = (here / "studies" / "x" / "study.md").read_text()
    assert "Incomplete: 2 of 4 trainings" in page
    assert page.count("Missing: tiny+broken") == 2
    # What a training said.
    assert page.count("data.patch: ") == 2


def test_a_requeued_task_holds_the_table_back(cluster: Cluster, here: Path) -> None:
    array, table = submit_study(cluster, here, *WORDS, "--seeds", "1")
    run = here / "studies" / "x" / "tiny" / "seed-0"
    interrupt(cluster, f"{array}_0", run)
    wait_for_restart(cluster, array, 1)
    assert cluster.states(table) == ["PENDING"]
    assert cluster.wait(array, 240) == ["COMPLETED"]
    assert cluster.wait(table, 120) == ["COMPLETED"], said(cluster, table)
    assert "Incomplete" not in (here / "studies" / "x" / "study.md").read_text()


def test_a_sweep_has_its_workers_in_an_array(cluster: Cluster, here: Path) -> None:
    (here / "experiments" / "sweeps").mkdir()
    (here / "experiments" / "sweeps" / "rates.yaml").write_text(
        "program: bts_lightning\nmethod: grid\nmetric: {name: val/dice/mean, goal: maximize}\n"
        "parameters: {task.optimizer.lr: {values: [1e-4, 1e-3, 1e-2, 1e-1]}}\n"
    )
    words = ["sweep", "tiny", "--sweep", "rates", "--local", "--agents", "1", "--name", "x"]
    number = cluster.submit(job(*words, head="#SBATCH --array=0-1\n"), here)
    assert cluster.wait(number, 240) == ["COMPLETED"] * 2, said(cluster, number)
    table = (here / "sweeps" / "x" / "result.md").read_text()
    assert all(rate in table for rate in ("0.0001", "0.001", "0.01", "0.1"))
    # Each trial was begun once, and both workers did some.
    logs = [file.read_text() for file in (here / "sweeps" / "x").glob("**/output.log")]
    assert len(logs) == 4
    assert all(text.count("\n$ ") + text.startswith("$ ") == 1 for text in logs)


def _with_experiments(here: Path, name: str) -> Path:
    (here / name).mkdir(exist_ok=True)
    if not (here / name / "experiments").exists():
        (here / name / "experiments").symlink_to(here / "experiments")
    return here / name
