"""The one scheduler: a process at each place until nothing is left to do, or somebody stops it."""

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from bts_lightning.files import write_whole
from bts_lightning.report.screen import Screen
from bts_lightning.runs.folder import RUN_VARIABLE
from bts_lightning.runs.processes import (
    Process,
    end_orphan,
    is_worked_on,
    reason,
    remove_dead_sign,
    remove_sign,
    sigterm_as_interrupt,
)

_LOOK_EVERY = 0.5
# How often an idle place asks whether another worker has died meanwhile.
_ASK_EVERY = 30.0
# Written when a training has ended by itself; without it the training is gone on with.
_TRAINED = "trained.txt"


class Job(Protocol):
    """What is to be done in one run folder."""

    @property
    def run(self) -> Path: ...


J = TypeVar("J", bound=Job)


class Scheduler(ABC, Generic[J]):
    """Keep places busy with jobs; a job is one command after the other in its run folder."""

    def __init__(self, console: Screen) -> None:
        self.console = console

    @abstractmethod
    def take(self) -> J | None:
        """Choose the job to begin now, if there is one."""

    @abstractmethod
    def begin(self, job: J) -> list[str]:
        """Give the first command of a job."""

    @abstractmethod
    def ended(self, job: J, code: int) -> list[str] | None:
        """Note how a command ended, and give the next one of the same job."""

    def watch(self, job: J, process: Process) -> None:
        """Look at a job that runs, and once more after its end."""

    def stopped(self, job: J, code: int) -> None:
        """Note that a job was asked to end before its time."""

    def work(self, places: Sequence[Mapping[str, str]] = ({},)) -> None:
        """Work until nothing is left; whatever ends it, no process is left behind.

        Args:
            places: the environment of each job at a time, as `devices.share_devices` gives them.
        """
        free = list(places)
        running: list[tuple[J, Process, Mapping[str, str]]] = []
        ask_at = 0.0

        def start(job: J, command: Sequence[str] | None, place: Mapping[str, str]) -> None:
            if command is None:
                remove_sign(job.run)
                free.append(place)
                return
            environment = {RUN_VARIABLE: str(job.run.resolve()), **place}
            running.append((job, Process(command, job.run, environment), place))

        with sigterm_as_interrupt():
            try:
                while True:
                    while free and time.monotonic() >= ask_at:
                        job = self.take()
                        if job is None:
                            ask_at = time.monotonic() + _ASK_EVERY
                            break
                        # Whoever was killed may have left it running; two must not write one run.
                        end_orphan(job.run)
                        start(job, self.begin(job), free.pop(0))
                    if not running:
                        return
                    time.sleep(_LOOK_EVERY)
                    for entry in list(running):
                        job, process, place = entry
                        code = process.poll()
                        self.watch(job, process)
                        if code is not None:
                            running.remove(entry)
                            ask_at = 0.0
                            try:
                                following = self.ended(job, code)
                            except BaseException:
                                remove_sign(job.run)  # this process may live on, as a notebook
                                raise
                            start(job, following, place)
            finally:
                self._stop([(job, process) for job, process, _ in running])

    def _stop(self, running: Sequence[tuple[J, Process]]) -> None:
        """Let what still runs save its state."""
        if running:
            self.console.print("stopping; what runs saves its state first (Ctrl-C again: kill)")
        for _, process in running:
            process.stop()
        for job, process in running:
            try:
                code = process.wait()
            except KeyboardInterrupt:
                process.kill()
                code = process.wait()
            self.watch(job, process)
            self.stopped(job, code)
            # Who goes on elsewhere must not wait for what has ended here.
            remove_sign(job.run)


class NamedJob(Job, Protocol):
    """A run to train and then to evaluate."""

    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=NamedJob)


class TrainAndEvaluate(Scheduler[T]):
    """Bring trainings to their end and evaluate them; what is done is not done again.

    Args:
        trainings: all of them, in order.
        part: the cases to score, which also names the evaluation.
        allow: packages that `_target_` may name beyond ours.
        console: where to tell.
    """

    def __init__(
        self, trainings: Sequence[T], part: str, allow: Sequence[str], console: Screen
    ) -> None:
        super().__init__(console)
        self.trainings, self.part = trainings, part
        self.waiting = list(trainings)
        self._allow = [word for package in allow for word in ("--allow", package)]
        self._began: dict[Path, float] = {}

    @abstractmethod
    def failed(self, why: str) -> None:
        """Tell of a training that cannot be done, or raise it."""

    def is_ready(self, training: T) -> bool:
        """Let a training wait for others."""
        return True

    def is_done(self, training: T) -> bool:
        """Say whether nothing is left to do for a training."""
        return is_evaluated(training.run, self.part)

    def words(self, training: T) -> Sequence[str]:
        """Give what `bts train` needs to begin a run, or to go on with it."""
        return [str(training.run)]

    def take(self) -> T | None:
        """Choose the first one that is ready, not done, and nobody else's."""
        for training in list(self.waiting):
            if self.is_done(training):
                self.waiting.remove(training)
                remove_dead_sign(training.run)
            elif self.is_ready(training):
                self.waiting.remove(training)
                if not is_worked_on(training.run):
                    return training
                self.failed(f"{training.name}: somebody works on {training.run}; left out")
        return None

    def begin(self, training: T) -> list[str]:
        """Say which one begins, or goes on."""
        number = f"{self.trainings.index(training) + 1}/{len(self.trainings)}"
        self.console.print(f"{number} {training.name}: {training.run}")
        return self._command(training)

    def ended(self, training: T, code: int) -> list[str] | None:
        """Let the evaluation follow upon the training."""
        run, was_trained = training.run, is_trained(training.run)
        done = "evaluated" if was_trained else "trained"
        if code:
            why = f"{reason(run, code)}; see {run / 'output.log'}"
            self.failed(f"{training.name} could not be {done}: {why}")
            return None
        took = time.monotonic() - self._began[run]
        self.console.print(f"{training.name}: {done} in {took:.0f} s")
        if was_trained:
            return None
        write_whole(run / _TRAINED, f"{time.strftime('%FT%T')}\n")
        return self._command(training)

    def _command(self, training: T) -> list[str]:
        self._began[training.run] = time.monotonic()
        words = ["train", *self.words(training)]
        if is_trained(training.run):
            words = ["evaluate", str(training.run), "--name", self.part, "--part", self.part]
        return [sys.executable, "-P", "-m", "bts_lightning", *words, *self._allow]


def is_evaluated(run: Path, part: str) -> bool:
    """Say whether a run has been trained to its end and evaluated."""
    return is_trained(run) and (run / "evaluation" / part / "cases.csv").is_file()


def is_trained(run: Path) -> bool:
    """Say whether a training of a study has come to its end."""
    return (run / _TRAINED).is_file()
