"""A sweep without an account: trainings side by side on this machine, its state in a folder."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from omegaconf import OmegaConf
from optuna.trial import FrozenTrial, TrialState
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from bts_lightning import runs
from bts_lightning.config.merge import is_override
from bts_lightning.errors import ConfigError, UserError
from bts_lightning.files import write_whole
from bts_lightning.loggers import read_metrics
from bts_lightning.runs.processes import Training, end_orphan, reason, sigterm_as_interrupt
from bts_lightning.sweep.file import EXPERIMENT, Sweep
from bts_lightning.sweep.report import counts, short, shown_path, state_name, write_result
from bts_lightning.sweep.store import Job, Store, number_of

_LOOK_EVERY = 1.0
# How often an idle place asks whether another worker has died meanwhile.
_ASK_EVERY = 30.0
# With nothing else than failures after so many trials, all will fail.
_HOPELESS = 5


def run_local(
    sweep: Sweep,
    words: Sequence[str],
    *,
    folder: Path,
    cap: int | None,
    places: Sequence[str | None],
    console: Console,
) -> int:
    """Work on a local sweep until no trial is left to start, and write its result.

    Args:
        sweep: what to search.
        words: the experiment and its overrides.
        folder: where everything is kept; the same folder continues, or joins from elsewhere.
        cap: number of trials in all.
        places: what CUDA_VISIBLE_DEVICES is for each trial at a time, None to leave it.
        console: where to show progress.
    """
    if cap is None and sweep.method != "grid":
        raise ConfigError(
            f"a {sweep.method} sweep has no end by itself; say how many trials with --count 20, "
            f"or with run_cap in {sweep.file}"
        )
    _keep(folder, sweep, words)
    store = Store(folder, sweep, cap)
    if store.trials():
        console.print(f"sweep   {shown_path(store.folder)}: {counts(store.trials())}")
    worker = Worker(store, _without_wandb(sweep, words), places, console)
    try:
        with sigterm_as_interrupt():
            worker.run()
    except KeyboardInterrupt:
        console.print(f"interrupted; the same command goes on with {folder}")
        return 130
    finally:
        result = write_result(worker.store, words)
        console.print(f"result  {result}", highlight=False, soft_wrap=True)
    return worker.conclude()


class Worker:
    """Keep a number of places busy with trials."""

    def __init__(
        self, store: Store, words: Sequence[str], places: Sequence[str | None], console: Console
    ) -> None:
        self.store, self.words, self.console = store, words, console
        self._free = list(places)
        self._running: list[tuple[Job, Training, str | None]] = []
        self._failed: list[str] = []
        self._live: Live | None = None

    def run(self) -> None:
        """Work until nothing is left; whatever ends it, no training is left behind."""
        try:
            with self._shown():
                self._work()
        finally:
            self._stop()

    def conclude(self) -> int:
        """Print the best trial; complain if there is none."""
        trials = self.store.trials()
        done = [t for t in trials if t.state == TrialState.COMPLETE]
        if not done:
            raise UserError(f"no trial of the sweep has finished{self._why()}")
        best = max(done, key=lambda t: self.store.sweep.sign * (t.value or 0.0))
        self.console.print(
            f"done    {counts(trials)}\n"
            f"best    trial {number_of(best)}, {self.store.sweep.metric} {best.value:.4f}: "
            f"{short(best.user_attrs['values'])}\n"
            f"next    bts evaluate {shown_path(self.store.run(best))}",
            highlight=False,
            soft_wrap=True,
        )
        return 0

    def _work(self) -> None:
        ask_at = 0.0
        while True:
            while self._free and time.monotonic() >= ask_at:
                job = self.store.claim()
                if job is None:
                    ask_at = time.monotonic() + _ASK_EVERY
                    break
                self._start(job)
            if not self._running:
                return
            time.sleep(_LOOK_EVERY)
            ended = [entry for entry in self._running if not self._is_going_on(*entry[:2])]
            for job, training, place in ended:
                self._running.remove((job, training, place))
                self._free.append(place)
                self._end(job, training.wait())
                ask_at = 0.0
            self._show()

    def _stop(self) -> None:
        """Let the trials that still run save their state, and give them back."""
        if not self._running:
            return
        self._say("stopping; each trial saves its state first (once more: kill)")
        for _, training, _ in self._running:
            training.stop()
        for job, training, _ in self._running:
            try:
                code = training.wait()
            except KeyboardInterrupt:
                training.kill()
                code = training.wait()
            self.store.record(job, self._history(job))
            if code == 0 and job.history:
                self.store.end(job, TrialState.COMPLETE)
            else:
                self.store.put_back(job)

    @contextmanager
    def _shown(self) -> Iterator[None]:
        """Show a table that follows the trials, on a terminal; elsewhere lines tell."""
        if not self.console.is_terminal:
            yield
            return
        with Live(self._table(), console=self.console, refresh_per_second=2) as self._live:
            yield
            self._show()

    def _start(self, job: Job) -> None:
        end_orphan(job.run)
        place = self._free.pop(0)
        environment = {runs.RUN_VARIABLE: str(job.run)}
        if place is not None:
            environment["CUDA_VISIBLE_DEVICES"] = place
        command = self.store.sweep.trial_command(self.words, job.values)
        begins = "goes on" if runs.is_run(job.run) else "starts"
        self._say(f"{job.title} {begins}: {short(job.values)}")
        self._running.append((job, Training(command, job.run, environment), place))

    def _is_going_on(self, job: Job, training: Training) -> bool:
        code = training.poll()
        self.store.record(job, self._history(job))
        if code is None and not job.is_pruned and self.store.is_behind(job):
            job.is_pruned = True
            training.stop()
        return code is None

    def _end(self, job: Job, code: int) -> None:
        if code == 0 and job.history:
            self.store.end(job, TrialState.COMPLETE)
            self._say(f"{job.title} done: {self.store.best(job.history):.4f}")
        elif job.is_pruned:
            self.store.end(job, TrialState.PRUNED)
            self._say(f"{job.title} pruned at {job.history[-1]:.4f}")
        else:
            why = reason(job.run, code) if code else f"it never logged {self.store.sweep.metric}"
            self._failed.append(why)
            self.store.end(job, TrialState.FAIL, why)
            self._print(f"{job.title} failed: {why}")
            if len(self._failed) >= _HOPELESS and not self._any_success():
                raise UserError(f"the first {len(self._failed)} trials failed{self._why()}")

    def _any_success(self) -> bool:
        good = (TrialState.COMPLETE, TrialState.PRUNED)
        return any(trial.state in good for trial in self.store.trials())

    def _why(self) -> str:
        return f"; the last one: {self._failed[-1]}" if self._failed else ""

    def _history(self, job: Job) -> list[float]:
        file = job.run / "logs" / "metrics.csv"
        curve = read_metrics(file).get(self.store.sweep.metric, []) if file.exists() else []
        return [value for _, value in curve if value == value]

    def _say(self, line: str) -> None:
        if self._live is None:
            self._print(line)

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True, markup=False)

    def _show(self) -> None:
        if self._live is not None:
            self._live.update(self._table())

    def _table(self) -> Table:
        sweep = self.store.sweep
        table = Table(title=f"{sweep.name}: {sweep.metric}", title_justify="left", box=box.SIMPLE)
        for heading in ("trial", "state", "values", "validations", "last", "best"):
            table.add_column(heading)
        for trial in self.store.trials()[-30:]:
            if trial.state != TrialState.WAITING:
                table.add_row(*self._row(trial))
        return table

    def _row(self, trial: FrozenTrial) -> tuple[str, ...]:
        history = [value for _, value in sorted(trial.intermediate_values.items())]
        best = self.store.best(history)
        return (
            str(number_of(trial)),
            state_name(trial.state),
            short(trial.user_attrs.get("values", {})),
            str(len(history)),
            f"{history[-1]:.4f}" if history else "",
            "" if best is None else f"{best:.4f}",
        )


def _keep(folder: Path, sweep: Sweep, words: Sequence[str]) -> None:
    """Keep what a folder searches, and refuse to mix two searches."""
    text = OmegaConf.to_yaml({"experiment": list(words), "sweep": dict(sweep.tree)})
    file = folder / "sweep.yaml"
    if not file.exists():
        write_whole(file, text)
    # The number of trials may be raised later.
    elif _without_cap(file.read_text(encoding="utf-8")) != _without_cap(text):
        raise ConfigError(
            f"{folder} holds another sweep (see {file}); name this one with --name, or delete it"
        )


def _without_cap(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.strip().startswith("run_cap:")]


def _without_wandb(sweep: Sweep, words: Sequence[str]) -> list[str]:
    """Turn W&B off unless the user says otherwise: a sweep without account needs no runs there."""
    if EXPERIMENT not in sweep.command:
        return list(words)
    names = [word for word in words if not is_override(word)]
    return [*names, "logger.wandb=null", *(word for word in words if is_override(word))]
