"""The trials of a local sweep: an Optuna study in a journal that any number of workers share."""

import os
import warnings
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from bts_lightning.files import alone
from bts_lightning.runs.processes import (
    is_from_elsewhere,
    is_worked_on,
    leave_sign,
    remove_dead_sign,
)
from bts_lightning.sweep.file import Sweep
from bts_lightning.sweep.space import cells

# A trial whose worker died so often takes its machine down; nobody runs it again.
ATTEMPTS = 3
_JOURNAL, _CLAIM, _TRIALS = "journal.log", "claim", "trials"


@dataclass
class Trial:
    """A trial that this worker has claimed."""

    asked: optuna.Trial
    values: dict[str, Any]
    run: Path
    history: list[float] = field(default_factory=list)
    is_pruned: bool = False

    @property
    def title(self) -> str:
        """Name it for people, by its folder."""
        return f"trial {int(self.run.name)}"


def number_of(trial: FrozenTrial) -> int:
    """Give the number that people see: that of its folder, kept when it goes on after a crash."""
    return int(trial.user_attrs.get("run", trial.number))


class Store:
    """Give out trials, and keep what became of them.

    Args:
        folder: of the sweep, on a disk that all workers see.
        cap: how many trials the sweep has in all; no end if None.
    """

    def __init__(self, folder: Path, sweep: Sweep, cap: int | None) -> None:
        self.folder = folder.resolve()
        self.sweep, self.cap = sweep, cap
        self.folder.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        journal = self.folder / _JOURNAL
        with _Lock(journal):
            _mend(journal)
        backend = JournalFileBackend(str(journal), _Lock(journal))
        with _Lock(self.folder / _CLAIM):
            self.study = optuna.create_study(
                study_name="sweep",
                storage=JournalStorage(backend),
                direction=sweep.goal,
                load_if_exists=True,
            )
            for trial in self.trials():
                if trial.state.is_finished() and "run" in trial.user_attrs:
                    remove_dead_sign(self.run(trial))

    def claim(self) -> Trial | None:
        """Take the next trial, or None if there is none to start."""
        with _Lock(self.folder / _CLAIM):
            self._bury()
            trials = self.trials()
            if self.sweep.method == "grid":
                self._lay_out_grid(trials)
                trials = self.trials()
            started = [t for t in trials if t.state != TrialState.WAITING]
            is_full = self.cap is not None and len(started) >= self.cap
            is_through = self.sweep.method == "grid" and len(started) == len(trials)
            if is_full or is_through or self._reached_target(started):
                return None
            self.study.sampler = _sampler(self.sweep, self._place())
            trial = self.study.ask()
            before = trial.user_attrs.get("run")
            run = self.folder / _TRIALS / f"{trial.number:04d}"
            if before and not is_from_elsewhere(self.folder / _TRIALS / before):
                run = self.folder / _TRIALS / before  # its checkpoints are there
            values = {p.name: p.suggest(trial) for p in self.sweep.parameters}
            trial.set_user_attr("values", values)
            trial.set_user_attr("run", run.name)
            leave_sign(_made(run))
        return Trial(trial, values, run)

    def record(self, trial: Trial, history: list[float]) -> None:
        """Report what a trial has logged since the last time."""
        for step in range(len(trial.history), len(history)):
            trial.asked.report(history[step], step)
        trial.history += history[len(trial.history) :]

    def is_behind(self, trial: Trial) -> bool:
        """Ask the sweep's rule whether a trial should stop."""
        if self.sweep.stopping is None:
            return False
        sign, own = self.sweep.sign, trial.asked.number
        others = [
            [sign * value for _, value in sorted(t.intermediate_values.items())]
            for t in self.trials()
            if t.number != own
        ]
        return self.sweep.stopping.is_behind([sign * value for value in trial.history], others)

    def end(self, trial: Trial, state: TrialState, reason: str = "") -> None:
        """Write down how a trial ended; its value is the best, which `best.ckpt` stands for."""
        if reason:
            trial.asked.set_user_attr("reason", reason)
        best = self.best(trial.history)
        self.study.tell(trial.asked, best if state == TrialState.COMPLETE else None, state=state)

    def put_back(self, trial: Trial) -> None:
        """Give a trial that was interrupted back, for the next worker to go on with."""
        with _Lock(self.folder / _CLAIM):
            self._again(self._frozen(trial))

    def is_last_attempt(self, trial: Trial) -> bool:
        """Say whether a trial that dies once more is given up."""
        return _attempt(self._frozen(trial)) >= ATTEMPTS

    def run(self, trial: FrozenTrial) -> Path:
        """Name the run folder of a trial."""
        return self.folder / _TRIALS / str(trial.user_attrs["run"])

    def best(self, history: list[float]) -> float | None:
        """Choose the best value of a curve."""
        return None if not history else self.sweep.sign * max(self.sweep.sign * v for v in history)

    def trials(self) -> list[FrozenTrial]:
        """List the trials, without those that were run again."""
        everything = self.study.get_trials(deepcopy=False)
        superseded = {t.user_attrs.get("again") for t in everything}
        return sorted((t for t in everything if t.number not in superseded), key=number_of)

    def _place(self) -> int:
        """Count the trials before the next one; those that run again have the place of the first.

        It is the seed, so that a continued sweep draws what an uninterrupted one would.
        """
        everything = self.study.get_trials(deepcopy=False)
        waiting = (t.number for t in everything if t.state == TrialState.WAITING)
        number = next(waiting, len(everything))
        while number < len(everything) and "again" in everything[number].user_attrs:
            number = everything[number].user_attrs["again"]
        return sum("again" not in t.user_attrs for t in everything[:number])

    def _bury(self) -> None:
        """Fail the trials whose workers died, and let their parameters run again."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            name = trial.user_attrs.get("run")
            if name is None or not is_worked_on(self.folder / _TRIALS / name):
                self._again(trial)

    def _frozen(self, trial: Trial) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[trial.asked.number]

    def _again(self, trial: FrozenTrial) -> None:
        everything = self.study.get_trials(deepcopy=False)
        is_superseded = any(t.user_attrs.get("again") == trial.number for t in everything)
        attempt = _attempt(trial)
        if not is_superseded and attempt < ATTEMPTS:
            # Who died before the folder was written down would have taken this one.
            kept: dict[str, Any] = {"run": f"{trial.number:04d}"}
            kept |= {k: v for k, v in trial.user_attrs.items() if k in ("run", "cell")}
            # Who died before the values were drawn started nothing; of half of them, a sampler
            # would draw others.
            is_drawn = "values" in trial.user_attrs
            params = trial.params if is_drawn else trial.system_attrs.get("fixed_params", {})
            kept |= {"again": trial.number, "attempt": attempt + is_drawn}
            self.study.enqueue_trial(params, user_attrs=kept)
        self.study.tell(trial.number, state=TrialState.FAIL)

    def _lay_out_grid(self, trials: list[FrozenTrial]) -> None:
        """Queue the cells that are not there yet; the first worker may have died at it."""
        there = {t.user_attrs.get("cell") for t in trials}
        for number, cell in enumerate(cells(self.sweep.parameters)):
            if number not in there:
                self.study.enqueue_trial(cell, user_attrs={"cell": number})

    def _reached_target(self, trials: list[FrozenTrial]) -> bool:
        sign, target = self.sweep.sign, self.sweep.target
        values = [v for t in trials for v in t.intermediate_values.values()]
        return target is not None and any(sign * value >= sign * target for value in values)


def _attempt(trial: FrozenTrial) -> int:
    return int(trial.user_attrs.get("attempt", 1))


class _Lock(JournalFileOpenLock):
    """The lock of the disk, which its holder's death frees; Optuna's on a disk without locks."""

    def __init__(self, file: Path) -> None:
        super().__init__(str(file))
        self._file, self._held = file, ExitStack()

    def acquire(self) -> bool:
        held = ExitStack()
        if held.enter_context(alone(self._file)) == "unlocked":
            super().acquire()
            held.callback(super().release)
        self._held = held
        return True

    def release(self) -> None:
        self._held.close()

    __enter__ = acquire

    def __exit__(self, *_: object) -> None:
        self.release()


def _sampler(sweep: Sweep, seed: int) -> BaseSampler:
    if sweep.method != "bayes":
        return RandomSampler(seed=seed)
    with warnings.catch_warnings():
        # Optuna 4 calls both options experimental; 5 no longer does.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(seed=seed, multivariate=True, constant_liar=True)


def _mend(journal: Path) -> None:
    """Drop a last line that a crash left half-written; Optuna would refuse the file forever."""
    if not journal.exists():
        return
    content = journal.read_bytes()
    if content and not content.endswith(b"\n"):
        os.truncate(journal, content.rfind(b"\n") + 1)


def _made(run: Path) -> Path:
    run.mkdir(parents=True, exist_ok=True)
    return run
