"""What stops a training, and that nothing is lost by it."""

import re
import shutil
import signal
from pathlib import Path

import pytest
import torch

from bts_lightning.loggers import read_metrics
from bts_lightning.runs.checkpoints import WholeCheckpoints, read_checkpoint
from tests.tiny_training import NOT_VALIDATED, TINY, final, the_run, train, weights

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")
OF_A2FSEG = ("a2fseg", "net.poolings", "net.width_limit", "data.augment")
PATHS = ("dirpath", "best_k_models")  # of the run


class KilledError(BaseException):
    """The process ends here."""


SAMPLING = ["uhved", *(word for word in TINY if not word.startswith(OF_A2FSEG))]
AVERAGED = "callbacks.ema._target_=lightning.pytorch.callbacks.EMAWeightAveraging"


@pytest.mark.parametrize(
    ("number", "step", "words"),
    [
        pytest.param(
            signal.SIGTERM,
            1,
            [*TINY, AVERAGED, *NOT_VALIDATED],
            id="averaged weights",
            marks=pytest.mark.slow,
        ),
        pytest.param(signal.SIGINT, 3, [*TINY, *NOT_VALIDATED], id="first step of an epoch"),
        pytest.param(
            signal.SIGTERM,
            2,
            [*TINY, "trainer.check_val_every_n_epoch=1"],
            id="last step",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            signal.SIGTERM,
            1,
            [*TINY, *NOT_VALIDATED, "trainer.accumulate_grad_batches=2", "data.steps_per_epoch=5"],
            id="gradients under way",
        ),
        pytest.param(
            signal.SIGTERM,
            2,
            [*TINY, *NOT_VALIDATED, "task.gradients=surgery"],
            id="surgery",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            signal.SIGINT,
            0,
            [*SAMPLING, *NOT_VALIDATED],
            id="a network that draws samples",
            marks=pytest.mark.slow,
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
    assert untimed(read_metrics(run / "logs/metrics.csv")) == untimed(curves)
    assert not (run / "checkpoints" / "interrupted.ckpt").exists()


def test_a_checkpoint_deletes_nothing_but_checkpoints_of_its_run(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="lightning.pytorch.utilities.rank_zero")
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    folder = run / "checkpoints"
    victims = [tmp_path / "thesis.tex", tmp_path / "data", folder / "best.ckpt", folder / "sub"]
    for victim in victims:
        (victim / "x").mkdir(parents=True) if victim.suffix == "" else victim.write_text("mine")
    named = [*map(str, victims), f"local://{victims[0]}", f"simplecache::file://{victims[0]}"]
    named.append(f"{folder}/../checkpoints/../../thesis.tex")
    (newest,) = folder.glob("epoch_*.ckpt")
    content = read_checkpoint(newest)
    (state,) = [s for s in content["callbacks"].values() if "best_k_models" in s]
    state["best_k_models"] |= {name: torch.tensor(-1.0 - i) for i, name in enumerate(named)}
    state["kth_best_model_path"] = state["best_model_path"] = state["last_model_path"] = named[-1]
    torch.save(content, newest)
    words = ["trainer.max_epochs=4", "callbacks.recent.save_last=true"]
    assert train(str(run), *words) == 0
    assert all(victim.exists() for victim in victims)
    assert "thesis.tex and 6 more, which is no checkpoint of" in caplog.text
    assert not (folder / "epoch_0001.ckpt").exists(), "its own it still tidies"


def untimed(curves: dict[str, list[tuple[int, float]]]) -> dict[str, list[tuple[int, float]]]:
    return {name: curve for name, curve in curves.items() if not name.startswith("speed/")}


@pytest.mark.slow
def test_a_training_killed_after_a_checkpoint_repeats_exactly(
    phantom: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*TINY, f"data.root={phantom}", "data.steps_per_epoch=2", "trainer.max_epochs=3"]
    words += ["trainer.check_val_every_n_epoch=1"]
    assert train(*words) == 0, capsys.readouterr().err
    undisturbed = the_run().rename("undisturbed")
    save = WholeCheckpoints.save_checkpoint
    removed = WholeCheckpoints.remove_checkpoint

    def save_and_die(self: WholeCheckpoints, checkpoint: object, path: str, **rest: object) -> None:
        save(self, checkpoint, path, **rest)
        if Path(path).name == "epoch_0000.ckpt":
            raise KilledError

    def die(self: WholeCheckpoints, path: str) -> None:
        if Path(path).name == "epoch_0000.ckpt":
            raise KilledError
        removed(self, path)

    # Once before the epoch is logged, once before the oldest checkpoint is removed.
    monkeypatch.setattr(WholeCheckpoints, "save_checkpoint", save_and_die)
    monkeypatch.setattr(WholeCheckpoints, "remove_checkpoint", die)
    with pytest.raises(KilledError):
        train(*words)
    monkeypatch.setattr(WholeCheckpoints, "save_checkpoint", save)
    run = the_run()
    with pytest.raises(KilledError):
        train(str(run))
    assert (run / "checkpoints" / "epoch_0000.ckpt").exists()
    monkeypatch.setattr(WholeCheckpoints, "remove_checkpoint", removed)
    assert train(str(run)) == 0, capsys.readouterr().err
    curves = [read_metrics(place / "logs/metrics.csv") for place in (undisturbed, run)]
    assert untimed(curves[1]) == untimed(curves[0])
    names = [{file.name for file in (p / "checkpoints").iterdir()} for p in (undisturbed, run)]
    assert names[1] == names[0]
    for name in names[0]:
        states = [
            [
                {
                    key: value
                    for key, value in state.items()
                    if "path" not in key and key not in PATHS
                }
                for state in read_checkpoint(place / "checkpoints" / name)["callbacks"].values()
            ]
            for place in (undisturbed, run)
        ]
        assert states[1] == states[0]


def test_a_signal_in_the_last_step_of_all_lets_the_training_end(phantom: Path) -> None:
    stop = "callbacks.stop._target_=tests.training_parts.SignalAt"
    words = [*TINY, f"data.root={phantom}", stop, "callbacks.stop.step=5"]
    assert train(*words) == 0
    run = the_run()
    assert read_metrics(run / "logs/metrics.csv")["val/dice/mean"]
    assert read_checkpoint(run / "checkpoints" / "best.ckpt")["epoch"] == 1


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
