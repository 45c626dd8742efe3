"""Training from the command line's words: every experiment, interruptions, guards."""

import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from rich.console import Console

from bts_lightning import config, runs
from bts_lightning.__main__ import main
from bts_lightning.loggers import read_metrics

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
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


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ("BTS_RUN", "SLURM_JOB_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_USE_AGENT_STORE")
    for name in given:
        monkeypatch.delenv(name, raising=False)


def train(*words: str) -> int:
    return main(["train", "--allow", "tests", *words])


def the_run(experiment: str = "*") -> Path:
    (found,) = Path("runs").glob(f"{experiment}/*/config.yaml")
    return found.parent


def weights(file: Path) -> dict[str, torch.Tensor]:
    return dict(runs.read_checkpoint(file)["state_dict"])


def final(run: Path) -> dict[str, torch.Tensor]:
    return weights(max((run / "checkpoints").glob("epoch_*.ckpt")))


# What stands before or after an experiment that is no training by itself; a teacher is a run of
# another experiment, so students are trained with theirs in `test_distill`.
MIXED = {
    "adaptor": ["unet_small", "adaptor"],
    "fast": ["unet_small", "fast"],
    "kd_anchor": ["kd_unet", "kd_anchor", "no_distillation"],
    "kd_rfnet": ["kd_rfnet", "no_distillation"],
    "kd_tumour": ["kd_unet", "kd_tumour", "no_distillation"],
    "kd_unet": ["kd_unet", "no_distillation"],
    "medmap": ["uhemis", "medmap"],
    "no_alignment": ["unet_small", "adaptor", "no_alignment"],
    "no_distillation": ["kd_unet", "no_distillation"],
    "nnunet": ["rfnet", "nnunet"],
    "smoke": ["unet_small"],
}
# `torch.compile` takes a while, and torch 2.13 imports on the way what it deprecates itself.
MARKS = {
    "fast": [
        pytest.mark.slow,
        pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    ]
}


def small(words: list[str]) -> list[str]:
    """Shrink the network of an experiment as its class says."""
    from bts_lightning.targets import find_class

    node: Any = config.load(words).net
    return [f"net.{k}={v}" for k, v in find_class(node._target_, "net").small().items()]


def everything() -> list[Any]:
    names = [path.stem for path in sorted(EXPERIMENTS.glob("*.yaml")) if path.stem != "base"]
    return [
        pytest.param(MIXED.get(name, [name]), id=name, marks=MARKS.get(name, ())) for name in names
    ]


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
    assert runs.read_checkpoint(max((run / "checkpoints").glob("epoch_*.ckpt")))["epoch"] == 1
    assert main(["evaluate", str(run), "--device", "cpu"]) == 0, capsys.readouterr().err
    table = pd.read_csv(run / "evaluation" / "test" / "cases.csv")
    assert len(table) == table.case.nunique() * 3 * 3
    assert table.dice.between(0, 1).all()
    assert (run / "evaluation" / "test" / "report.html").stat().st_size > 10_000


OF_A2FSEG = ("a2fseg", "net.poolings", "net.width_limit", "data.augment")
SAMPLING = ["uhved", *(word for word in TINY if not word.startswith(OF_A2FSEG))]
AVERAGED = "callbacks.ema._target_=lightning.pytorch.callbacks.EMAWeightAveraging"
NOT_VALIDATED = ["trainer.limit_val_batches=0", "callbacks.best=null", "callbacks.subsets=null"]


@pytest.mark.parametrize(
    ("number", "step", "words"),
    [
        pytest.param(signal.SIGTERM, 1, [*TINY, AVERAGED, *NOT_VALIDATED], id="averaged weights"),
        pytest.param(signal.SIGINT, 3, [*TINY, *NOT_VALIDATED], id="first step of an epoch"),
        pytest.param(
            signal.SIGTERM, 2, [*TINY, "trainer.check_val_every_n_epoch=1"], id="last step"
        ),
        pytest.param(
            signal.SIGTERM,
            1,
            [*TINY, *NOT_VALIDATED, "trainer.accumulate_grad_batches=2", "data.steps_per_epoch=5"],
            id="gradients under way",
        ),
        pytest.param(
            signal.SIGINT, 0, [*SAMPLING, *NOT_VALIDATED], id="a network that draws samples"
        ),
    ],
)
def test_a_stopped_training_ends_with_the_same_weights(
    number: int,
    step: int,
    words: list[str],
    phantom: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [*words, f"data.root={phantom}"]
    assert train(*words) == 0, capsys.readouterr().err
    undisturbed = the_run()
    expected, curves = final(undisturbed), read_metrics(undisturbed / "logs/metrics.csv")
    undisturbed.rename("undisturbed")
    stop = "callbacks.stop._target_=tests.training_parts.SignalAt"
    told = [stop, f"callbacks.stop.step={step}", f"callbacks.stop.number={int(number)}"]
    assert train(*words, *told) == 2
    printed = capsys.readouterr().err
    assert f"stopped by {signal.Signals(number).name}" in printed
    assert "continue with: bts train" in printed
    run = the_run()
    assert train(str(run), "callbacks.stop=null") == 0, capsys.readouterr().err
    found = final(run)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    resumed = read_metrics(run / "logs/metrics.csv")
    assert resumed["train/loss"] == curves["train/loss"]
    assert resumed.get("val/dice/mean") == curves.get("val/dice/mean")
    assert not (run / "checkpoints" / "interrupted.ckpt").exists()


def test_a_signal_in_the_last_step_of_all_lets_the_training_end(phantom: Path) -> None:
    stop = "callbacks.stop._target_=tests.training_parts.SignalAt"
    words = [*TINY, f"data.root={phantom}", stop, "callbacks.stop.step=5"]
    assert train(*words) == 0
    run = the_run()
    assert read_metrics(run / "logs/metrics.csv")["val/dice/mean"]
    assert runs.read_checkpoint(run / "checkpoints" / "best.ckpt")["epoch"] == 1


def test_a_signal_before_the_first_step_is_no_success(
    phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = "callbacks.stop._target_=tests.training_parts.TermBeforeTraining"
    words = [*TINY, f"data.root={phantom}", stop, "trainer.num_sanity_val_steps=1"]
    assert train(*words) == 2
    assert "error: stopped by SIGTERM" in capsys.readouterr().err


def test_slurm_out_of_reach_is_one_line(
    phantom: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("PATH", "")
    stop = "callbacks.stop._target_=tests.training_parts.SignalAt"
    told = [stop, "callbacks.stop.step=1", f"callbacks.stop.number={int(signal.SIGUSR1)}"]
    assert train(*TINY, *NOT_VALIDATED, f"data.root={phantom}", *told) == 2
    assert "stopped by SIGUSR1" in capsys.readouterr().err
    assert (the_run() / "checkpoints" / "interrupted.ckpt").exists()


def test_a_finished_run_can_be_given_again(
    phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*TINY, f"data.root={phantom}") == 0
    run = the_run()
    before = (run / "logs" / "metrics.csv").read_text()
    unfinished = run / "checkpoints" / ".epoch_0001.ckpt.4711.part"  # of a process that was killed
    unfinished.write_bytes(b"half")
    assert train(str(run)) == 0
    assert not unfinished.exists()
    assert re.search(r"done +mean Dice 0\.\d+ at best\n", capsys.readouterr().out)
    assert (run / "logs" / "metrics.csv").read_text() == before


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
    assert "another seed; give each training of a job a folder" in capsys.readouterr().err
    assert config.load([str(the_run() / "config.yaml")]).seed == 0
    monkeypatch.setenv("BTS_RUN", "runs/second/1")
    assert train(*words, "seed=1") == 0
    assert runs.checkpoints(Path("runs/second/1"))


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
    content = torch.load(newest, weights_only=True)
    for state in content["callbacks"].values():
        if state.get("monitor") == "val/dice/mean":  # as if no later epoch came near it
            state["best_model_score"] = state["kth_value"] = torch.tensor(1.0)
            state["best_k_models"] = dict.fromkeys(state["best_k_models"], torch.tensor(1.0))
    torch.save(content, newest)
    assert train(str(run), "trainer.max_epochs=2") == 0
    assert runs.read_checkpoint(run / "checkpoints" / "best.ckpt")["epoch"] == 0


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


def test_a_loss_that_is_not_finite_stops_before_the_weights(
    phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    poison = "callbacks.poison._target_=tests.training_parts.PoisonAt"
    words = [*TINY, f"data.root={phantom}", poison, "callbacks.poison.step=2"]
    assert train(*words) == 2
    line = capsys.readouterr().err
    assert re.search(r"the loss is nan in epoch 0, step 2, for BraTS2021_\d+ \(t", line)
    saved = weights(the_run() / "checkpoints" / "before_nonfinite.ckpt")
    assert all(value.isfinite().all() for value in saved.values())


@pytest.mark.parametrize("said", [None, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"])
def test_running_out_of_memory_says_what_to_lower(
    said: str | None, phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = "callbacks.full._target_=tests.training_parts.OutOfMemoryAt"
    told = [full, "callbacks.full.step=0", f"callbacks.full.said={said!r}"]
    size = ["data.batch_size=2", "trainer.accumulate_grad_batches=3"]
    assert train(*TINY, f"data.root={phantom}", *told, *size) == 2
    line = capsys.readouterr().err
    assert "out of memory" in line
    assert "data.batch_size=1 with trainer.accumulate_grad_batches=6" in line


def test_a_long_training_on_a_cpu_says_how_long(
    phantom: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="lightning.pytorch.utilities.rank_zero")
    words = [*TINY, *NOT_VALIDATED, f"data.root={phantom}", "trainer.max_epochs=1"]
    assert train(*words, "callbacks.speed_on_cpu.after_steps=1") == 0
    assert "on this CPU" not in caplog.text
    told = ["callbacks.speed_on_cpu.after_steps=1", "callbacks.speed_on_cpu.worth_saying_hours=0"]
    assert train(*words, *told) == 0
    assert re.search(r"s a step on this CPU: 3 steps would take \d+\.\d days", caplog.text)


def test_speed_and_learning_rate_are_curves(phantom: Path) -> None:
    words = [*TINY, *NOT_VALIDATED, f"data.root={phantom}", "trainer.max_epochs=1"]
    assert train(*words) == 0
    curves = read_metrics(the_run() / "logs" / "metrics.csv")
    assert [value > 0 for _, value in curves["speed/patches_per_second"]] == [True] * 3
    assert all(0 <= value <= 1 for _, value in curves["speed/data_wait_share"])
    assert curves["lr-SGD"][0][1] == pytest.approx(0.01)


def test_what_is_slow_between_steps_is_no_wait_for_data(phantom: Path) -> None:
    slow = "callbacks.slow._target_=tests.training_parts.SlowEnds"
    words = [*TINY, *NOT_VALIDATED, slow, f"data.root={phantom}", "trainer.max_epochs=1"]
    assert train(*words) == 0
    curves = read_metrics(the_run() / "logs" / "metrics.csv")
    assert all(value < 0.2 for _, value in curves["speed/data_wait_share"])
    assert curves["speed/patches_per_second"][-1][1] < 2


def test_a_checkpoint_of_another_network_is_refused(
    phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*TINY, f"data.root={phantom}", "trainer.max_epochs=1") == 0
    run = the_run()
    assert train(str(run), "net.width=8", "trainer.max_epochs=2") == 2
    assert "was trained with another network" in capsys.readouterr().err
    assert config.load([str(run / "config.yaml")]).net.width == 4


def test_the_line_of_an_epoch_shows_scores_of_this_epoch_only(
    phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*TINY, f"data.root={phantom}", "trainer.max_epochs=3") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert ["val/dice/mean" in line for line in lines] == [False, True, False]


def test_a_terminal_gets_the_bar_that_is_named_and_a_file_none(
    phantom: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*TINY, *NOT_VALIDATED, f"data.root={phantom}", "trainer.max_epochs=1"]
    other = "callbacks.progress._target_=lightning.pytorch.callbacks.TQDMProgressBar"
    assert train(*words, other) == 0
    assert "epoch 1/1" in capsys.readouterr().out
    monkeypatch.setattr("bts_lightning.train.console", Console(force_terminal=True))
    assert train(*words, other) == 0
    assert "epoch 1/1" not in capsys.readouterr().out
    assert train(*words, "callbacks.progress=null") == 0
    printed = capsys.readouterr()
    assert "epoch 1/1" in printed.out
    assert "it/s" not in printed.out + printed.err


def test_validation_logs_every_cell_and_keeps_the_best(phantom: Path) -> None:
    words = [*TINY, f"data.root={phantom}", "trainer.check_val_every_n_epoch=1"]
    assert train(*words, "evaluation.subsets=null", "callbacks.overlays.protocol=${evaluation}",
                 "callbacks.overlays._target_=bts_lightning.callbacks.Overlays") == 0  # fmt: skip
    run = the_run()
    curves = read_metrics(run / "logs" / "metrics.csv")
    for name in ("val/dice/mean", "val/dice/with_t1c", "val/t1c+flair/dice/ET", "train/loss_epoch"):
        assert len(curves[name]) == 2
    cells = [name for name in curves if re.fullmatch(r"val/[a-z0-9+]+/dice/(WT|TC|ET)", name)]
    assert len(cells) == 45
    best = runs.read_checkpoint(run / "checkpoints" / "best.ckpt")["epoch"]
    scores = [value for _, value in curves["val/dice/mean"]]
    assert scores[best] == max(scores)
    assert len(list((run / "overlays").glob("*.png"))) == 2


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
        (["unet", "smoke", "data.patch=32"], "data.patch is 32, of which UNet leaves one voxel"),
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
