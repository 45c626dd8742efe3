"""What callbacks measure, log and print in a training."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning import LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from bts_lightning.callbacks import TrainingBar
from bts_lightning.commands.evaluate import evaluate
from bts_lightning.loggers import read_metrics
from bts_lightning.report.table import EvaluationTable
from bts_lightning.runs.checkpoints import read_checkpoint
from tests.tiny_training import NOT_VALIDATED, TINY, the_run, train

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


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


def test_the_line_of_an_epoch_shows_scores_of_this_epoch_only(
    phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*TINY, f"data.root={phantom}", "trainer.max_epochs=3") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert ["val/dice/mean" in line for line in lines] == [False, True, False]


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
    assert len({curves[name][-1][1] for name in cells}) > 3, "equal cells would hide a wrong mean"
    # What checkpoints and sweeps watch is the mean of the cells, and so are the parts of it.
    with_t1c = [name for name in cells if "t1c" in name]
    without = sorted(set(cells) - set(with_t1c))
    for shown, some in (("mean", cells), ("with_t1c", with_t1c), ("without_t1c", without)):
        means = np.mean([[value for _, value in curves[name]] for name in some], axis=0)
        found = [value for _, value in curves[f"val/dice/{shown}"]]
        assert found == pytest.approx(means.tolist(), abs=1e-5)
    best = read_checkpoint(run / "checkpoints" / "best.ckpt")["epoch"]
    scores = [value for _, value in curves["val/dice/mean"]]
    assert scores[best] == max(scores)
    # What is watched is what an evaluation of the same cases gives.
    table = EvaluationTable.read(evaluate(run, device="cpu", part="val"))
    for metric in ("dice", "hd95"):
        watched = curves[f"val/{metric}/mean"][best][1]
        assert watched == pytest.approx(table.grid(metric).mean(), rel=1e-5)
    assert len(list((run / "overlays").glob("*.png"))) == 2


class Watched(TrainingBar):
    """Remember what the bar shows after each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[tuple[str, float, float | None]] = []

    def refresh(self, hard: bool = False) -> None:
        super().refresh(hard)
        if self.progress is not None and self.train_progress_bar_id is not None:
            bar = self.train_progress_bar
            self.shown.append((bar.description, bar.completed, bar.total))


def fit_two_epochs(resume: Path | None = None, **limits: int) -> tuple[Watched, Trainer]:
    bar = Watched()
    settings: dict[str, Any] = {"max_epochs": 2, "limit_train_batches": 3, **limits}
    settings |= {"logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    trainer = Trainer(callbacks=[bar], limit_val_batches=1, **settings)
    net: LightningModule = BoringModel()
    trainer.fit(net, ckpt_path=resume)
    return bar, trainer


def test_one_bar_counts_the_batches_of_all_epochs_and_goes_on_where_it_was(tmp_path: Path) -> None:
    bar, _ = fit_two_epochs()
    shown = {(done, total): name for name, done, total in bar.shown if done}
    assert list(shown) == [(n, 6) for n in range(1, 7)]
    assert shown[6, 6] == "Epoch 1/1 "
    file = tmp_path / "half.ckpt"
    _, trainer = fit_two_epochs(max_epochs=1)
    trainer.save_checkpoint(file)
    bar, _ = fit_two_epochs(resume=file)
    assert [done for _, done, _ in dict.fromkeys(bar.shown)] == [3, 4, 5, 6]
    bar, _ = fit_two_epochs(max_epochs=-1, max_steps=4)
    assert bar.shown[-1][1:] == (4, 4)
