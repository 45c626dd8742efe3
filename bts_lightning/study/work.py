"""Bring the trainings of a study to their evaluations, one after the other."""

import time
from collections.abc import Sequence

from bts_lightning import runs
from bts_lightning.report.screen import Screen
from bts_lightning.runs.jobs import TrainAndEvaluate
from bts_lightning.runs.processes import LOG, is_worked_on, last_word
from bts_lightning.study.plan import PART, Training

_ASK_EVERY = 10.0


def work(
    trainings: Sequence[Training],
    console: Screen,
    allow: Sequence[str] = (),
    only: int | None = None,
) -> int:
    """Give the exit status; a training that fails does not stop the rest."""
    study = _Study(trainings, PART, allow, console)
    if only is not None:
        study.waiting = [trainings[only]]
        _outwait(trainings[only], console)
    try:
        study.work()
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on")
        return 130
    return study.status


def unfinished(training: Training) -> str:
    """Say in one line why a training is not evaluated."""
    if not (training.run / LOG).is_file():
        return "not begun"
    return f"{last_word(training.run) or 'ended without a word'}; see {training.run / LOG}"


class _Study(TrainAndEvaluate[Training]):
    status = 0

    def words(self, training: Training) -> Sequence[str]:
        is_there = runs.is_run(training.run)
        return super().words(training) if is_there else training.words

    def failed(self, why: str) -> None:
        self.console.print(f"failed: {why}", style="red")
        self.status = 1


def _outwait(training: Training, console: Screen) -> None:
    """Let a task that Slurm starts again elsewhere find out that the machine before is dead."""
    if not training.evaluation and is_worked_on(training.run):
        console.print(f"{training.name}: waits for who works on it, or is dead")
    while not training.evaluation and is_worked_on(training.run):
        time.sleep(_ASK_EVERY)
