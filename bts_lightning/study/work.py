"""Bring the trainings of a study to their evaluations, one after the other."""

import sys
import time
from collections.abc import Sequence
from itertools import pairwise

from rich.console import Console
from rich.markup import escape

from bts_lightning import runs
from bts_lightning.errors import UserError
from bts_lightning.files import write_whole
from bts_lightning.runs.processes import (
    Training,
    end_orphan,
    is_worked_on,
    leave_sign,
    reason,
    sigterm_as_interrupt,
    take_sign_away,
)
from bts_lightning.study.plan import Unit

_ASK_EVERY = 10.0


def work(units: Sequence[Unit], console: Console, only: int | None = None) -> int:
    """Bring one unit after the other to its evaluation; a failing one does not stop the rest."""
    failed = 0
    for number, unit in enumerate(units, 1):
        if only not in (None, number - 1):
            continue
        if only is not None:
            _outwait(unit, console)
        if unit.evaluation:
            continue
        if is_worked_on(unit.run):
            console.print(f"{unit.title}: somebody works on it; left out", markup=False)
            failed = 1
            continue
        console.print(f"[bold]{number}/{len(units)}[/] {escape(f'{unit.title}: {unit.run}')}")
        try:
            with sigterm_as_interrupt():
                _bring_on(unit, console)
        except UserError as error:
            console.print(f"[red]failed[/]: {escape(str(error))}")
            failed = 1
        except KeyboardInterrupt:
            console.print("interrupted; the same command goes on")
            return 130
    return failed


def _outwait(unit: Unit, console: Console) -> None:
    """Let a task that Slurm starts again elsewhere find out that the machine before is dead."""
    if not unit.evaluation and is_worked_on(unit.run):
        console.print(f"{unit.title}: waits for who works on it, or is dead", markup=False)
    while not unit.evaluation and is_worked_on(unit.run):
        time.sleep(_ASK_EVERY)


def _bring_on(unit: Unit, console: Console) -> None:
    """Train, or go on training, and evaluate."""
    end_orphan(unit.run)
    again = [str(unit.run), *_allowed(unit.words)]
    try:
        if not unit.is_trained:
            _run(unit, console, "train", *(again if runs.is_run(unit.run) else unit.words))
            write_whole(unit.run / "trained", "")
        _run(unit, console, "evaluate", *again)
    finally:
        # A job that Slurm starts again on another machine must not wait for what has ended here.
        take_sign_away(unit.run)


def _run(unit: Unit, console: Console, *words: str) -> None:
    unit.run.mkdir(parents=True, exist_ok=True)
    leave_sign(unit.run)
    command = [sys.executable, "-m", "bts_lightning", *words]
    training = Training(command, unit.run, {runs.RUN_VARIABLE: str(unit.run.resolve())})
    try:
        code = training.wait()
    except KeyboardInterrupt:
        console.print("stopping; the training saves its state first (Ctrl-C again: kill)")
        training.stop()
        try:
            training.wait()
        except KeyboardInterrupt:
            training.kill()
            training.wait()
        raise
    if code:
        raise UserError(f"bts {words[0]}: {reason(unit.run, code)} ({unit.run / 'output.log'})")


def _allowed(words: Sequence[str]) -> list[str]:
    """Take `--allow package` out of the words of a training."""
    pairs = [pair for pair in pairwise(words) if pair[0] == "--allow"]
    return [part for pair in pairs for part in pair]
