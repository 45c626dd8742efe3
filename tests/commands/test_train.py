"""Training from the command line's words: every experiment, runs that go on, refusals."""

import os
import re
import shutil
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf

from bts_lightning import config, runs
from bts_lightning.__main__ import main
from bts_lightning.loggers import read_metrics
from bts_lightning.report.screen import Screen
from bts_lightning.runs.checkpoints import read_checkpoint
from bts_lightning.runs.lock import only_one
from tests.tiny_training import NOT_VALIDATED, TINY, final, the_run, train

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")
EXPERIMENTS = Path(__file__).parents[2] / "experiments"


# What stands before or after an experiment that is no training by itself; a teacher is a run of
# another experiment, so students are trained with theirs in `test_distill`.
MIXED = {
    "adaptor": ["unet_small", "adaptor"],
    "cavity": ["unet_small", "cavity"],
    "dcseg": ["rfnet", "dcseg"],
    "fast": ["unet_small", "fast"],
    "kd_anchor": ["kd_unet", "kd_anchor", "no_distillation"],
    "m3ae": ["m3ae", "task.pretraining=null"],
    "kd_rfnet": ["kd_rfnet", "no_distillation"],
    "kd_tumour": ["kd_unet", "kd_tumour", "no_distillation"],
    "kd_unet": ["kd_unet", "no_distillation"],
    "medmap": ["uhemis", "medmap"],
    "metakd": ["metakd", "data.held_out=1", "task.teaching.crops=2"],
    "missing_rates": ["uhemis", "missing_rates"],
    "mri_artifacts": ["unet_small", "mri_artifacts"],
    "no_alignment": ["unet_small", "adaptor", "no_alignment"],
    "no_distillation": ["kd_unet", "no_distillation"],
    "nnunet": ["rfnet", "nnunet"],
    "passion": ["rfnet", "passion"],
    "phantom": ["unet_small", "phantom"],
    "smoke": ["unet_small"],
    "tensorboard": ["unet_small", "tensorboard"],
    "unimrseg": ["unimrseg", "task.pretraining=null"],
    "unimrseg_contrast": ["unimrseg", "unimrseg_contrast", "task.pretraining=null"],
}
# `torch.compile` takes a while, and torch 2.13 imports on the way what it deprecates itself.
MARKS: dict[str, list[pytest.MarkDecorator]] = {
    "fast": [
        pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    ],
    "tensorboard": [pytest.mark.skipif(not find_spec("tensorboard"), reason="no tensorboard here")],
}


def small(words: list[str]) -> list[str]:
    """Shrink the network of an experiment as its class says, but for what follows the data."""
    from bts_lightning.config.targets import find_class

    node: Any = config.load(words).net
    sizes = find_class(node._target_, "net").small()
    return [f"net.{k}={v}" for k, v in sizes.items() if not OmegaConf.is_interpolation(node, k)]


# Those that the quick tests train: two networks, a mix-in around one, a teacher of a chain.
QUICK = ("a2fseg", "demoseg", "kd_anchor", "medmap")


def everything() -> list[Any]:
    """List the experiments."""
    cases = []
    # Labels of other data sets are trained in `test_schemes`, first stages in `test_stages` and
    # `test_m3ae`.
    beyond = ("base", "ped", "men_rt", "unimrseg_reconstruct", "m3ae_pretraining")
    for name in sorted(p.stem for p in EXPERIMENTS.glob("*.yaml") if p.stem not in beyond):
        words = MIXED.get(name, [name])
        marks = [*MARKS.get(name, []), *([] if name in QUICK else [pytest.mark.slow])]
        cases.append(pytest.param(words, id=name, marks=marks))
    return cases


@pytest.mark.parametrize("experiment", everything())
def test_every_experiment_fits_resumes_and_evaluates(
    experiment: list[str], phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        *experiment,
        "smoke",
        *(["trainer.precision=bf16-mixed"] if "fast" in experiment else []),
        *small(experiment),
        f"data.root={phantom}",
        "data.patch=32",
        "data.steps_per_epoch=1",
        "trainer.max_epochs=1",
        "trainer.accelerator=cpu",
        "trainer.devices=1",
        "evaluation.subsets=[flair,t1c+t2,t1+t1c+t2+flair]",
        "callbacks.overlays=null",
    ]
    assert train(*words) == 0, capsys.readouterr().err
    run = the_run()
    assert train(str(run), "trainer.max_epochs=2") == 0, capsys.readouterr().err
    assert read_checkpoint(max((run / "checkpoints").glob("epoch_*.ckpt")))["epoch"] == 1
    assert main(["evaluate", str(run), "--device", "cpu"]) == 0, capsys.readouterr().err
    table = pd.read_csv(run / "evaluation" / "test" / "cases.csv")
    assert len(table) == table.case.nunique() * 3 * table.region.nunique()
    assert table.dice.between(0, 1).all()
    assert (run / "evaluation" / "test" / "report.html").stat().st_size > 10_000


def test_a_finished_run_can_be_given_again(
    phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*TINY, f"data.root={phantom}") == 0
    run = the_run()
    before = (run / "logs" / "metrics.csv").read_text()
    unfinished = run / "checkpoints" / f".epoch_0001.ckpt.{4711:032x}.part"
    unfinished.write_bytes(b"half")
    assert train(str(run)) == 0
    assert not unfinished.exists()
    assert re.search(r"done +mean Dice 0\.\d+ at best\n", capsys.readouterr().out)
    assert (run / "logs" / "metrics.csv").read_text() == before


def test_a_run_is_trained_and_evaluated_by_one_process_at_a_time(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    evaluation = run / "evaluation" / "test"
    with only_one(run, "training"), only_one(evaluation, "evaluating"):
        before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
        assert train(str(run), "trainer.max_epochs=2") == 2
        assert f"process {os.getpid()} on {socket.gethostname()} is at" in capsys.readouterr().err
        assert main(["evaluate", str(run), "--device", "cpu"]) == 2
        assert f"is at evaluating {evaluation}" in capsys.readouterr().err
        assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
        # Another part has a folder of its own.
        assert main(["evaluate", str(run), "--device", "cpu", "--part", "val"]) == 0


def test_curves_begin_anew_where_no_checkpoint_was_left(phantom: Path) -> None:
    words = [*TINY, f"data.root={phantom}", *NOT_VALIDATED, "trainer.max_epochs=1"]
    assert train(*words) == 0
    run = the_run()
    for file in (run / "checkpoints").iterdir():
        file.unlink()
    before = read_metrics(run / "logs/metrics.csv")["train/loss"]
    assert train(str(run)) == 0
    assert read_metrics(run / "logs/metrics.csv")["train/loss"] == before


def test_a_second_training_of_a_slurm_job_does_not_go_on_with_the_first(
    phantom: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_PROCID", "0")
    words = [*TINY, *NOT_VALIDATED, f"data.root={phantom}", "trainer.max_epochs=1"]
    assert train(*words) == 0
    assert train(*words) == 0  # the job came back
    assert train(*words, "seed=1") == 2
    told = "began with seed=0, now it is 1; it belongs to this job: give each training of a job"
    assert told in capsys.readouterr().err
    assert config.load([str(the_run() / "config.yaml")]).seed == 0
    monkeypatch.setenv("BTS_RUN", "runs/second/1")
    assert train(*words, "seed=1") == 0
    assert runs.checkpoint_files(Path("runs/second/1"))


def test_a_seed_reproduces_a_run_and_another_does_not(phantom: Path) -> None:
    words = [*TINY, f"data.root={phantom}", "trainer.max_epochs=1", "trainer.limit_val_batches=0"]
    found = []
    for seed in (1, 1, 2):
        assert train(*words, f"seed={seed}", "callbacks.best=null") == 0
        run = the_run()
        found.append(final(run))
        run.rename(f"run{len(found)}")
    first, again, other = found
    assert all(torch.equal(again[name], value) for name, value in first.items())
    assert not all(torch.equal(other[name], value) for name, value in first.items())


def test_a_truncated_checkpoint_is_named_and_the_one_before_is_used(
    phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*TINY, f"data.root={phantom}") == 0
    run = the_run()
    newest = max((run / "checkpoints").glob("epoch_*.ckpt"))
    newest.write_bytes(newest.read_bytes()[:5000])
    (run / "checkpoints" / "best.ckpt").unlink()
    assert train(str(run), "trainer.max_epochs=3") == 0
    printed = capsys.readouterr().out
    assert f"{newest.name} cannot be read" in printed.replace("\n", "")
    assert "going on from epoch_0000.ckpt" in printed


def test_a_run_that_was_moved_keeps_its_best_checkpoint(phantom: Path) -> None:
    words = [*TINY, f"data.root={phantom}", "trainer.check_val_every_n_epoch=1"]
    assert train(*words, "trainer.max_epochs=1") == 0
    run = the_run().rename("moved")
    newest = run / "checkpoints" / "epoch_0000.ckpt"
    content = read_checkpoint(newest)
    for state in content["callbacks"].values():
        if state.get("monitor") == "val/dice/mean":  # as if no later epoch came near it
            state["best_model_score"] = state["kth_value"] = torch.tensor(1.0)
            state["best_k_models"] = dict.fromkeys(state["best_k_models"], torch.tensor(1.0))
    torch.save(content, newest)
    assert train(str(run), "trainer.max_epochs=2") == 0
    assert read_checkpoint(run / "checkpoints" / "best.ckpt")["epoch"] == 0


def test_data_that_have_grown_cannot_mix_up_the_parts_of_a_run(
    phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(phantom, "data"))
    words = [*TINY, *NOT_VALIDATED, "data.root=data", "trainer.max_epochs=1"]
    assert train(*words) == 0, capsys.readouterr().err
    run = the_run()
    first = sorted(data.glob("BraTS2021_*"))[0]
    for number in range(9000, 9008):
        name = f"BraTS2021_0{number}"
        shutil.copytree(first, data / name)
        for file in (data / name).iterdir():
            file.rename(file.with_name(file.name.replace(first.name, name)))
    same = f"data.root={data.resolve()}"
    evaluate = ["evaluate", "--part", "train"]
    for verb in (["train", "--allow", "tests"], evaluate, [*evaluate, same]):
        assert main([*verb, str(run)]) == 2
        assert f"data.split={run}/split.json keeps the first one" in capsys.readouterr().err
    assert train(str(run), f"data.split={run}/split.json", "trainer.max_epochs=2") == 0


def test_a_checkpoint_of_another_network_is_refused(
    phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*TINY, f"data.root={phantom}", "trainer.max_epochs=1") == 0
    run = the_run()
    assert train(str(run), "net.width=8", "trainer.max_epochs=2") == 2
    assert "was trained with another network" in capsys.readouterr().err
    assert config.load([str(run / "config.yaml")]).net.width == 4


def test_a_terminal_gets_the_bar_that_is_named_and_a_file_none(
    phantom: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*TINY, *NOT_VALIDATED, f"data.root={phantom}", "trainer.max_epochs=1"]
    other = "callbacks.progress._target_=lightning.pytorch.callbacks.TQDMProgressBar"
    assert train(*words, other) == 0
    assert "epoch 1/1" in capsys.readouterr().out
    monkeypatch.setattr("bts_lightning.commands.fit.console", Screen(force_terminal=True))
    assert train(*words, other) == 0
    assert "epoch 1/1" not in capsys.readouterr().out
    assert train(*words, "callbacks.progress=null") == 0
    printed = capsys.readouterr()
    assert "epoch 1/1" in printed.out
    assert "it/s" not in printed.out + printed.err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["a2fseg", "smoke", "data.root=nowhere"], "nowhere"),
        (["a2fsg"], "did you mean a2fseg?"),
        (["a2fseg", "smoke", "trainer.accelerator=gpu"], "gpu|GPU|CUDA"),
        (["a2fseg", "net.out_channels=4"], "set net.out_channels=3"),
        (["uhemis", "smoke", "data.patch=33"], r"data.patch: .* multiples of 8.*\(40, 40, 40\)"),
        (["unet", "smoke", "seed=-1"], "seed is -1; the smallest is 0"),
        (["unet", "smoke", "trainer.accumulate_grad_batches=0"], "is 0; the smallest is 1"),
        (["unet", "smoke", "trainer.check_val_every_n_epoch=0"], "is 0; the smallest is 1"),
        (["unet", "smoke", "trainer.precision=bf16-true"], "bf16-true; .*take bf16-mixed"),
        (["unet", "smoke", "callbacks.speed_on_cpu.after_steps=0"], "is 0; the smallest is 1"),
        (["unet", "smoke", "trainer.default_root_dir=there"], "set BTS_RUN=FOLDER in the env"),
        (["unet", "smoke", "data.patch=8"], "data.patch is 8, of which UNet leaves one voxel"),
    ],
)
def test_what_cannot_work_is_one_line(
    words: list[str], line: str, phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "data.root=nowhere" not in words:
        words = [*words, f"data.root={phantom}"]
    assert train(*words) == 2
    printed = capsys.readouterr().err.strip()
    assert re.search(line, printed)
    assert len(printed.splitlines()) == 1
