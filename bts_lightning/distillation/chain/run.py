"""Train and evaluate the stages of a plan, each in a process of its own; what is done is kept."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from bts_lightning import runs
from bts_lightning.distillation.chain.plan import Plan, Stage
from bts_lightning.errors import UserError
from bts_lightning.files import write_whole
from bts_lightning.runs.processes import (
    Training,
    end_orphan,
    is_worked_on,
    reason,
    sigterm_as_interrupt,
)

_LOOK_EVERY = 0.5
# Written when a training has ended by itself; without it the training is gone on with.
_TRAINED = "trained.txt"


@dataclass
class _Job:
    stage: Stage
    verb: str
    process: Training
    place: str | None
    began: float


class Chain:
    """Keep the places busy with stages whose teachers are there, until none is left.

    Args:
        plan: what to do.
        part: the cases to score.
        places: what CUDA_VISIBLE_DEVICES is for each stage at a time, None to leave it.
        allow: packages that `_target_` may name beyond ours.
        console: where to tell.
    """

    def __init__(
        self,
        plan: Plan,
        part: str,
        places: Sequence[str | None],
        allow: Sequence[str],
        console: Console,
    ) -> None:
        self.plan, self.part, self.console = plan, part, console
        self._allow = [word for package in allow for word in ("--allow", package)]
        self._free = list(places)
        self._running: list[_Job] = []

    def run(self) -> None:
        """Work until all is done; whatever ends it, no process is left behind."""
        waiting = [stage for stage in self.plan.stages if not self.is_done(stage)]
        done = len(self.plan.stages) - len(waiting)
        if done:
            self.console.print(f"{done} of {len(self.plan.stages)} stages are done already")
        try:
            with sigterm_as_interrupt():
                self._work(waiting)
        finally:
            self._stop()

    def is_done(self, stage: Stage) -> bool:
        """Say whether a stage was trained and evaluated."""
        table = stage.run / "evaluation" / self.part / "cases.csv"
        return (stage.run / _TRAINED).exists() and table.exists()

    def _work(self, waiting: list[Stage]) -> None:
        while waiting or self._running:
            while self._free and (stage := self._next(waiting)):
                waiting.remove(stage)
                self._begin(stage)
            time.sleep(_LOOK_EVERY)
            for job in list(self._running):
                code = job.process.poll()
                if code is not None:
                    self._running.remove(job)
                    self._free.append(job.place)
                    self._end(job, code)

    def _next(self, waiting: list[Stage]) -> Stage | None:
        ready = (s for s in waiting if all(self.is_done(self.plan.stage(n)) for n in s.needs))
        return next(ready, None)

    def _begin(self, stage: Stage) -> None:
        if is_worked_on(stage.run):
            raise UserError(f"{stage.run} is being trained by another command; wait for its end")
        # Whoever was killed may have left its training running; two must not write one run.
        end_orphan(stage.run)
        if not runs.checkpoint_files(stage.run):
            runs.save_config(stage.run, stage.config)
        self._start(stage, "evaluate" if (stage.run / _TRAINED).exists() else "train")

    def _start(self, stage: Stage, verb: str) -> None:
        options = ["--name", self.part, "--part", self.part] if verb == "evaluate" else []
        command = [sys.executable, "-m", "bts_lightning", verb, str(stage.run)]
        place = self._free.pop(0)
        environment = {} if place is None else {"CUDA_VISIBLE_DEVICES": place}
        process = Training([*command, *options, *self._allow], stage.run, environment)
        self._running.append(_Job(stage, verb, process, place, time.monotonic()))

    def _end(self, job: _Job, code: int) -> None:
        stage = job.stage
        if code != 0:
            raise UserError(
                f"{stage.name} could not be {_DONE[job.verb]}: {reason(stage.run, code)}; see "
                f"{stage.run / 'output.log'}; the same command goes on"
            )
        place = f"[{self.plan.stages.index(stage) + 1:2}/{len(self.plan.stages)}]"
        took = f"{time.monotonic() - job.began:.0f} s"
        self.console.print(f"{place} {stage.name:24} {_DONE[job.verb]} in {took}", markup=False)
        if job.verb == "train":
            write_whole(stage.run / _TRAINED, f"{time.strftime('%FT%T')}\n")
            self._start(stage, "evaluate")

    def _stop(self) -> None:
        """Let what still runs save its state."""
        for job in self._running:
            job.process.stop()
        for job in self._running:
            try:
                job.process.wait()
            except KeyboardInterrupt:
                job.process.kill()
                job.process.wait()


_DONE = {"train": "trained", "evaluate": "evaluated"}
