"""Studies: what is planned, refused, continued, and how the end is counted."""

import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bts_lightning.__main__ import main, parse
from bts_lightning.errors import ConfigError, UserError
from bts_lightning.files import write_whole
from bts_lightning.metrics.table import METRICS
from bts_lightning.report.paired import pair
from bts_lightning.report.screen import Screen
from bts_lightning.report.table import EvaluationTable
from bts_lightning.runs import jobs, processes
from bts_lightning.runs.processes import Process
from bts_lightning.study import work
from bts_lightning.study.bound import read_curves
from bts_lightning.study.plan import Training, plan_study
from bts_lightning.study.report import Outcome, mean_and_deviation, pooled, write_study
from tests.report.synthetic import protocol, rows
from tests.tiny_training import TRAINING, wait_for


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with two tiny experiments of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "experiments" / "tiny.yaml").write_text(TRAINING)
    (tmp_path / "experiments" / "wider.yaml").write_text("extends: [tiny]\nnet: {width: 6}\n")
    return tmp_path


def plan(*words: str) -> list[Training]:
    return plan_study(parse(["study", *words]))[1]


def test_every_seed_meets_every_experiment_and_fold(here: Path):
    found = plan("tiny 'tiny wider'", "--seeds", "2", "--folds", "3", "data.root=.")
    assert len(found) == 12
    assert found[0].run == Path("studies/tiny_tiny+wider/tiny/seed-0_fold-1")
    last = ("tiny", "wider", "seed=1", "data.split=fold 3 of 3", "data.root=.")
    assert found[-1].words == last
    # The order in which an interrupted study is still of use.
    assert [training.seed for training in found] == [0] * 6 + [1] * 6


def test_pairs_are_a_word_each_and_may_share_an_experiment(here: Path):
    words = ["tiny wider", "tiny 'wider tiny'", "--seeds", "2", "--name", "x", "data.root=."]
    _, trainings, groups = plan_study(parse(["study", *words]))
    assert groups == [["tiny", "wider"], ["tiny", "wider+tiny"]]
    assert [t.experiment for t in trainings] == ["tiny", "wider", "wider+tiny"] * 2


def test_without_folds_the_experiment_says_how_to_split(here: Path):
    assert plan("tiny", "--seeds", "1")[0].words == ("tiny", "seed=0")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["tiny tinny"], "no experiment is named 'tinny'; did you mean tiny?"),
        (["tiny", "wider"], "wider is no key=value; name the experiments in one word"),
        (["tiny", "net.widht=4"], "did you mean net.width?"),
        (["tiny", "--seed", "3"], "unknown option --seed"),
        (["tiny", "seed=3"], "a study sets seed itself"),
        (["tiny", "--folds", "5", "data.split=random"], "a study sets data.split itself"),
        (["tiny", "--folds", "2"], "give 3 or more"),
        (["tiny", "--seeds", "0"], "give 1 or more"),
        ([], "name the experiments in one word"),
        ([" "], "name the experiments in one word"),
        (["tiny 'tiny wider"], "tiny 'tiny wider: a quote is not closed; name the experiments"),
        (["tiny", "data.root=gone"], "data.root is gone, which does not exist"),
        (["tiny tiny"], "stands there twice"),
        (["tiny wider", "tiny 'tiny wider"], "a quote is not closed"),
        (["tiny wider", "tiny"], "tiny is no key=value; name the experiments in one word"),
        (["tiny wider", ""], "name the experiments in one word"),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(here: Path, words: list[str], told: str):
    with pytest.raises(UserError) as error:
        plan(*words)
    assert told in str(error.value)
    assert not (here / "studies").exists()


def test_other_overrides_in_the_same_folder_are_refused(here: Path):
    plan("tiny", "net.width=4")
    plan("tiny wider", "net.width=4", "--name", "tiny")  # one experiment more is no other study
    with pytest.raises(ConfigError, match=r"began with overrides=.*width=4.*--name"):
        plan("tiny", "net.width=8")


def test_a_failure_is_told_whole_and_leaves_nobody_at_work(
    here: Path, capsys: pytest.CaptureFixture[str]
):
    both = [Training(f"no[{n}]", 0, None, here / n, (f"no[{n}]",)) for n in ("other", "such")]
    assert work.work(both, Screen(width=1000), only=1) == 1
    said = capsys.readouterr().out
    assert "2/2 no[such], seed 0" in said
    told = "no[such], seed 0 could not be trained: no experiment is named 'no[such]'"
    assert f"failed: {told}" in said
    # A job that Slurm starts again on another machine would take the sign for somebody's work.
    assert not (here / "such" / "worker.json").exists()
    assert not (here / "other").exists()


def test_a_task_outwaits_a_machine_that_died_with_it(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(processes, "SILENT_AFTER", 1.0)
    monkeypatch.setattr(work, "_ASK_EVERY", 0.1)
    training = Training("nope", 0, None, here / "nope", ("nope",))
    write_whole(training.run / "worker.json", '{"host": "gone", "worker": "1:2", "training": null}')
    assert work.work([training], Screen()) == 1
    assert "somebody works on" in capsys.readouterr().out
    assert work.work([training], Screen(), only=0) == 1
    assert "no experiment is named 'nope'" in capsys.readouterr().out


def test_going_on_trusts_the_packages_that_the_beginning_did(
    here: Path, monkeypatch: pytest.MonkeyPatch
):
    given: list[list[str]] = []

    class Done:
        def __init__(self, command: list[str], *_: object) -> None:
            given.append(command[4:])
            if command[4] == "evaluate":
                write_whole(training.run / "evaluation" / "test" / "cases.csv", "")

        def poll(self) -> int:
            return 0

    monkeypatch.setattr(jobs, "Process", Done)
    (training,) = plan("tiny", "--seeds", "1", "data.root=.", "--allow", "mine")
    write_whole(training.run / "config.yaml", "")
    assert work.work([training], Screen(), ["mine"]) == 0
    run, part = str(training.run), ["--name", "test", "--part", "test"]
    assert given == [
        ["train", run, "--allow", "mine"],
        ["evaluate", run, *part, "--allow", "mine"],
    ]


def submitted(script: str, folder: Path) -> list[str]:
    """Run a script that submits jobs, with a `sbatch` that only keeps them."""
    sbatch = folder / "bin" / "sbatch"
    sbatch.parent.mkdir(exist_ok=True)
    sbatch.write_text('#!/bin/bash\nn=$(ls jobs | wc -l)\n{ echo "$@"; cat; } > jobs/$n\necho $n\n')
    sbatch.chmod(0o755)
    (folder / "jobs").mkdir()
    path = {"PATH": f"{sbatch.parent}:{os.environ['PATH']}"}
    subprocess.run(["bash"], input=script, text=True, check=True, env=os.environ | path)
    return [file.read_text() for file in sorted((folder / "jobs").iterdir())]


def test_the_slurm_script_is_one_training_a_task(here: Path, capsys: pytest.CaptureFixture[str]):
    words = ["tiny 'tiny wider'", "--seeds", "2", "--folds", "3", "data.root=a b"]
    asked = ["--slurm", "--sbatch", "--partition=big -c4 --gres=gpu:a100:1"]
    assert main(["study", *words, *asked]) == 0
    array, table = submitted(capsys.readouterr().out, here)
    assert "#SBATCH --array=0-11" in array
    assert "--cpus-per-task" not in array
    assert "#SBATCH -c4" in array
    assert "#SBATCH --gres=gpu:a100:1" in array
    assert "--gpus-per-task" not in array
    # The table waits for the trainings, on the same part of the cluster, without a GPU.
    assert "--dependency=afterany:0" in table.splitlines()[0]
    assert "#SBATCH --partition=big" in table
    assert "gpu:" not in table
    # What the shell makes of the last line is this program with the same words.
    start = [sys.executable, "-P", "-m", "bts_lightning", "study", *words]
    for job, last in ((array, ["--only", "7"]), (table, ["--table"])):
        line = "printf '%s\n' " + job.splitlines()[-1].removeprefix("srun ")
        shell = subprocess.run(
            ["bash", "-c", line],
            env=os.environ | {"SLURM_ARRAY_TASK_ID": "7"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert shell.stdout.splitlines() == [*start, *last]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--slurm", "--sbatch=--array=0-3"], "--sbatch --array=0-3: a study sets --array itself"),
        (["--slurm", "--sbatch=gpu"], "--sbatch gpu: give options of sbatch, as --sbatch="),
        (["--slurm", "--sbatch=-p 'gpu"], "a quote is not closed"),
        (["--sbatch=-p gpu"], "--sbatch is for --slurm"),
        (["--table"], "has come to its evaluation; tiny, seed 0: not begun"),
    ],
)
def test_what_is_wrong_with_jobs_is_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
):
    assert main(["study", "tiny", "data.root=.", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_training_that_is_missing_has_its_reason(here: Path):
    (training,) = plan("tiny", "--seeds", "1", "data.root=.")
    assert work.unfinished(training) == "not begun"
    process = Process(
        [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], training.run, {}
    )
    assert process.wait() == -9
    assert work.unfinished(training).startswith("killed, which is what the system does")
    code = "print('error: the disk is full'); print('bye'); raise SystemExit(2)"
    assert Process([sys.executable, "-c", code], training.run, {}).wait() == 2
    assert work.unfinished(training) == f"the disk is full; see {training.run / 'output.log'}"


def result(name: str, seed: int, fold: int | None, made: list[dict[str, Any]]) -> Outcome:
    return Outcome(name, seed, fold, EvaluationTable.from_rows(made), protocol(experiment=name))


def constant(cases: list[str], dice: float) -> list[dict[str, Any]]:
    """Give every cell the same Dice."""
    made = rows(len(cases))
    names = dict(zip(sorted({row["case"] for row in made}), cases, strict=True))
    return [row | {"case": names[row["case"]], "dice": dice} for row in made]


def test_deviation_is_that_of_trainings():
    results = [result("a", s, None, constant(["x", "y"], d)) for s, d in enumerate([0.7, 0.8, 0.9])]
    mean, deviation = mean_and_deviation(results, METRICS["dice"])
    np.testing.assert_allclose(mean, 80.0)
    np.testing.assert_allclose(deviation, 10.0)
    assert np.isnan(mean_and_deviation(results[:1], METRICS["dice"])[1]).all()


def test_folds_are_joined_and_seeds_averaged():
    folds = {1: ["a", "b"], 2: ["c"]}
    results = [
        result("net", seed, fold, constant(cases, 0.5 + 0.1 * seed + 0.01 * fold))
        for seed in (0, 1)
        for fold, cases in folds.items()
    ]
    (evaluation,) = pooled(results)
    grid = evaluation.table.grid("dice")
    assert evaluation.table.cases == ("a", "b", "c")
    np.testing.assert_allclose(grid[:, 0, 0], [0.56, 0.56, 0.57])
    np.testing.assert_allclose(
        evaluation.table.grid("true_ml")[2], results[1].table.grid("true_ml")[0]
    )


def test_pooled_cases_keep_their_patient():
    made = [row | {"patient": "p"} for row in constant(["a", "b"], 0.5)]
    (evaluation,) = pooled([result("net", seed, None, made) for seed in (0, 1)])
    assert evaluation.table.patients == ("p", "p")


def test_tests_use_what_all_experiments_have():
    results = [
        result("a", 0, None, constant(["x"], 0.5)),
        result("a", 1, None, constant(["x"], 0.9)),
        result("b", 0, None, constant(["x"], 0.6)),
    ]
    first, second = pooled(results)
    differences = pair(first.table, second.table, METRICS["dice"]).means.cells().mean
    np.testing.assert_allclose(differences, 10.0)  # not 0.6 against 0.7


def test_trainings_of_two_schemes_make_no_table(tmp_path: Path):
    cavity = [row | {"region": "RC"} for row in rows(3) if row["region"] == "ET"]
    found = [result("plain", 0, None, rows(3)), result("cavity", 0, None, rows(3) + cavity)]
    with pytest.raises(UserError, match="different subsets or regions"):
        write_study(tmp_path, found, [], Screen())


def test_the_table_is_printed_and_written(tmp_path: Path):
    results = [
        result(name, seed, fold, rows(6, seed=fold, noise=seed + shift, prefix=f"f{fold}_"))
        for name, shift in (("base", 0), ("<other>|", 50))
        for seed in (0, 1)
        for fold in (1, 2, 3)
    ]
    text = StringIO()
    screen = Screen(file=text, width=80, color_system=None)
    missing = ["base, seed 9: the disk is full", "base, seed 8: not begun"]
    write_study(tmp_path, results, missing, screen, "A2FSeg paper, Table 2")
    mean, deviation = mean_and_deviation(results[:6], METRICS["dice"])
    cell = f"{mean[0, 0]:.2f} ± {deviation[0, 0]:.2f}"
    row = next(line for line in text.getvalue().splitlines() if line.strip().startswith("base"))
    assert row.split()[:2] == ["base", "6"]
    assert cell in row
    assert "Incomplete: 12 of 14 trainings" in text.getvalue()
    assert "Missing: base, seed 9: the disk is full" in text.getvalue()
    assert "only) 89.29 82.00 66.00 BraTS2020" in " ".join(text.getvalue().split())
    published = "| baseline (average fusion module only) | 89.29 | 82.00 | 66.00 | BraTS2020 |"
    assert published in (tmp_path / "study.md").read_text()
    assert (
        "Printed of BraTS2020; the cases here are of unknown data."
        in (tmp_path / "study.md").read_text()
    )
    assert "18 cases, paired by case and subset" in text.getvalue()
    assert f"| base | 6 | {cell} |" in (tmp_path / "study.md").read_text()
    assert "| &lt;other>\\| | 6 |" in (tmp_path / "study.md").read_text()
    assert "<other>" not in (tmp_path / "study.html").read_text()
    assert (tmp_path / "comparison" / "comparison.html").is_file()


def test_each_pair_has_its_gain_and_its_bound(tmp_path: Path):
    dice = {"a": 0.5, "a+on": 0.6, "b": 0.7, "b+on": 0.65}
    results = [
        replace(
            result(name, seed, None, constant(["x", "y"], value)),
            curves={"reconstruction": [0.5, 0.4], "kl": [0.3, 0.1 + 0.2 * seed], "bound": [0, -1]}
            if name == "a+on"
            else {},
        )
        for seed in (0, 1)
        for name, value in dice.items()
    ]
    groups, text = [["a", "a+on"], ["b", "b+on"]], StringIO()
    screen = Screen(file=text, width=200, color_system=None)
    write_study(tmp_path, results, [], screen, groups=groups)
    written = (tmp_path / "study.md").read_text()
    assert "| a+on against a | +10.00 [10.00, 10.00] |" in written
    assert "| b+on against b | −5.00 [−5.00, −5.00] |" in written
    assert "b+on against b: WT Dice (points) −5.00" in " ".join(text.getvalue().split())
    assert "against b" not in written.partition("a+on against a |")[0]
    assert "| a+on | 2 | 0.4000 ± 0.0000 | 0.2000 ± 0.1414 | −1.0000 ± 0.0000 |" in written
    page = (tmp_path / "study.html").read_text()
    assert page.count("KL to the anchor over each epoch") == 1
    assert "Bound over epochs: a+on" in page
    compared = (tmp_path / "comparison" / "comparison.md").read_text()
    assert "## b+on against b" in compared
    assert "against a" in compared
    assert "b against a" not in compared


def test_the_curves_of_a_run_are_read_by_epoch(tmp_path: Path):
    rows = ["step,metric,value"]
    for epoch, kl in enumerate((0.5, 0.25)):
        rows += [f"{epoch},train/elbo/kl,{kl}", f"{epoch},train/loss,9"]
    write_whole(tmp_path / "logs" / "metrics.csv", "\n".join([*rows, ""]))
    assert read_curves(tmp_path) == {"kl": [0.5, 0.25]}
    assert read_curves(tmp_path / "none") == {}


def test_a_training_of_a_study_imports_nothing_from_the_current_folder(here: Path):
    for name in ("yaml", "argparse", "bts_lightning", "runpy"):
        (here / f"{name}.py").write_text("raise SystemExit('executed')")
    training = Training("gone", 0, None, here / "run", ("gone",))
    study = work._Study([training], "test", [], Screen(file=StringIO()))
    done = subprocess.run(study.begin(training), capture_output=True, text=True, check=False)
    assert done.stderr.startswith("error: no experiment is named 'gone'")


def start(here: Path, *words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "bts_lightning", "study", *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=here, stdout=pipe, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_a_study_killed_in_the_middle_goes_on_to_one_table(here: Path, phantom: Path):
    words = ["tiny wider", "--seeds", "2", f"data.root={phantom}", "logger.wandb=null"]
    first = start(here, *words)
    runs = here / "studies" / "tiny_wider"
    wait_for(runs / "wider" / "seed-0" / "config.yaml", 400)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    kept = runs / "tiny" / "seed-0" / "evaluation" / "test" / "cases.csv"
    before = kept.stat().st_mtime_ns
    second = start(here, *words)
    printed, _ = second.communicate(timeout=900)
    assert second.returncode == 0, printed
    assert kept.stat().st_mtime_ns == before, "what was finished was done again"
    assert "1/4 " not in printed
    lines = [line.split() for line in printed.splitlines()]
    table = [line for line in lines if line[3:4] == ["±"]]
    assert [line[0] for line in table] == ["tiny", "wider"] * 2
    assert all(line[1] == "2" and not math.isnan(float(line[2])) for line in table)
    assert "wider against tiny" in printed
    # A third time there is nothing to train.
    third, _ = start(here, *words).communicate(timeout=120)
    assert "/4 " not in third
