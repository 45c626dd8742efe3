"""A sweep without an account: trainings side by side on this machine, its state in a folder."""

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from omegaconf import OmegaConf
from optuna.trial import FrozenTrial, TrialState
from rich import box
from rich.live import Live
from rich.table import Table

from bts_lightning import runs
from bts_lightning.config.merge import is_override
from bts_lightning.errors import ConfigError, UserError
from bts_lightning.files import write_whole
from bts_lightning.loggers import read_metrics
from bts_lightning.report.screen import Screen
from bts_lightning.runs.jobs import Scheduler
from bts_lightning.runs.processes import Process, reason
from bts_lightning.sweep.file import EXPERIMENT, Sweep
from bts_lightning.sweep.report import counts, short, shown_path, state_name, write_result
from bts_lightning.sweep.store import Store, Trial, number_of

# With nothing else than failures after so many trials, all will fail.
_HOPELESS = 5


def run_local(
    sweep: Sweep,
    words: Sequence[str],
    *,
    folder: Path,
    cap: int | None,
    places: Sequence[Mapping[str, str]],
    console: Screen,
) -> int:
    """Work on a local sweep until no trial is left to start, and write its result.

    Args:
        sweep: what to search.
        words: the experiment and its overrides.
        folder: where everything is kept; the same folder continues, or joins from elsewhere.
        cap: number of trials in all.
        places: the environment of each trial at a time.
        console: where to show progress.
    """
    if cap is None and sweep.method != "grid":
        raise ConfigError(
            f"a {sweep.method} sweep has no end by itself; say how many trials with --count 20, "
            f"or with run_cap in {sweep.file}"
        )
    facts = {"experiment": list(words), "sweep": dict(sweep.tree)}
    # The number of trials may be raised later.
    runs.refuse_another(folder / "sweep.yaml", facts, runs.OTHER_NAME, ["sweep.run_cap"])
    write_whole(folder / "sweep.yaml", OmegaConf.to_yaml(facts))
    store = Store(folder, sweep, cap)
    if store.trials():
        console.print(f"sweep   {shown_path(store.folder)}: {counts(store.trials())}")
    worker = Worker(store, _without_wandb(sweep, words), console)
    try:
        with worker.shown():
            worker.work(places)
    except KeyboardInterrupt:
        console.print(f"interrupted; the same command goes on with {folder}")
        return 130
    finally:
        result = write_result(worker.store, words)
        console.print(f"result  {result}")
    return worker.conclude()


class Worker(Scheduler[Trial]):
    """Run the trials that the store gives out, and watch their curves."""

    def __init__(self, store: Store, words: Sequence[str], console: Screen) -> None:
        super().__init__(console)
        self.store, self.words = store, words
        self._failed: list[str] = []
        self._live: Live | None = None

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

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show a table that follows the trials, on a terminal; elsewhere lines tell."""
        if not self.console.is_terminal:
            yield
            return
        with Live(self._table(), console=self.console, refresh_per_second=2) as self._live:
            yield
            self._show()

    def take(self) -> Trial | None:
        """Claim the next trial."""
        return self.store.claim()

    def begin(self, trial: Trial) -> list[str]:
        """Write the command of a trial, which goes on where there is a run already."""
        begins = "goes on" if runs.is_run(trial.run) else "starts"
        self._say(f"{trial.title} {begins}: {short(trial.values)}")
        return self.store.sweep.trial_command(self.words, trial.values)

    def watch(self, trial: Trial, process: Process) -> None:
        """Keep the curve, and stop a trial that has fallen behind."""
        self.store.record(trial, self._history(trial))
        if process.poll() is None and not trial.is_pruned and self.store.is_behind(trial):
            trial.is_pruned = True
            process.stop()
        self._show()

    def ended(self, trial: Trial, code: int) -> None:
        """Write down how a trial ended."""
        if code == 0 and trial.history:
            self.store.end(trial, TrialState.COMPLETE)
            self._say(f"{trial.title} done: {self.store.best(trial.history):.4f}")
        elif trial.is_pruned:
            self.store.end(trial, TrialState.PRUNED)
            self._say(f"{trial.title} pruned at {trial.history[-1]:.4f}")
        elif code == -signal.SIGKILL and not self.store.is_last_attempt(trial):
            self.store.put_back(trial)
            self._print(f"{trial.title} was killed; it is tried again")
        else:
            metric = self.store.sweep.metric
            why = reason(trial.run, code) if code else f"it never logged {metric}"
            self._failed.append(why)
            self.store.end(trial, TrialState.FAIL, why)
            self._print(f"{trial.title} failed: {why}")
            if len(self._failed) >= _HOPELESS and not self._any_success():
                raise UserError(f"the first {len(self._failed)} trials failed{self._why()}")

    def stopped(self, trial: Trial, code: int) -> None:
        """Give back a trial that did not come to its end."""
        if code == 0 and trial.history:
            self.store.end(trial, TrialState.COMPLETE)
        else:
            self.store.put_back(trial)

    def _any_success(self) -> bool:
        good = (TrialState.COMPLETE, TrialState.PRUNED)
        return any(trial.state in good for trial in self.store.trials())

    def _why(self) -> str:
        return f"; the last one: {self._failed[-1]}" if self._failed else ""

    def _history(self, trial: Trial) -> list[float]:
        file = trial.run / "logs" / "metrics.csv"
        curve = read_metrics(file).get(self.store.sweep.metric, []) if file.exists() else []
        return [value for _, value in curve if value == value]

    def _say(self, line: str) -> None:
        if self._live is None:
            self._print(line)

    def _print(self, line: str) -> None:
        self.console.print(line)

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


def _without_wandb(sweep: Sweep, words: Sequence[str]) -> list[str]:
    """Turn W&B off unless the user says otherwise: a sweep without account needs no runs there."""
    if EXPERIMENT not in sweep.command:
        return list(words)
    names = [word for word in words if not is_override(word)]
    return [*names, "logger.wandb=null", *(word for word in words if is_override(word))]
