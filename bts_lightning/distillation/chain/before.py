"""The training that another one begins from: found where it was done before, or done first."""

import os
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from bts_lightning import config as configuration
from bts_lightning import runs
from bts_lightning.config.merge import experiments, is_override
from bts_lightning.distillation.chain.plan import Stage
from bts_lightning.errors import UserError
from bts_lightning.files import alone
from bts_lightning.report.screen import Screen
from bts_lightning.runs.jobs import TrainAndEvaluate, is_trained
from bts_lightning.runs.processes import LOG, is_worked_on

# Overrides that are of the second stage alone; the mix-ins of a command are for both.
_OWN = ("task.", "evaluation.", "callbacks.", "trainer.max_epochs=")
_ASK_EVERY = 10.0


def first_stage(words: Sequence[str], mixin: str, allow: Sequence[str]) -> Path:
    """Find the run that these words with the mix-in have made, or begin one.

    A run is the same when its whole configuration is; one that ended is taken before others. It may
    begin from another one itself, made of the same words by the mix-in that it names.
    """
    given, words = words, words_of_first(words, mixin)
    names = [Path(word).stem for word in words if not is_override(word)]
    config = configuration.load(words, allow=allow)
    configuration.check(config, allow=allow, supplied=configuration.SUPPLIED)
    if (before := OmegaConf.select(config, "task.pretraining")) in experiments():
        config.task.pretraining = str(first_stage(given, before, allow))
    home = runs.RUNS / re.sub(r"[^\w.+-]+", "_", "+".join(names))
    home.mkdir(parents=True, exist_ok=True)
    with alone(home / ".first"):
        same = [file.parent for file in home.glob("*/config.yaml") if _is_same(file, config)]
        if same:
            run = max(same, key=lambda run: (is_trained(run), run.name))
        else:
            run = home / time.strftime("%Y%m%d-%H%M%S")
            while run.exists():
                run = run.with_name(f"{run.name}-2")
            runs.save_config(run, config)
        (run / LOG).touch()  # whoever begins from it brings it to its end
    return run


def words_of_first(words: Sequence[str], mixin: str) -> list[str]:
    """Put the mix-in behind the experiment, so that the others of the command come after it."""
    names = [word for word in words if not is_override(word)]
    rest = [word for word in words if is_override(word) and not word.lstrip("-").startswith(_OWN)]
    return [*names[:1], mixin, *names[1:], *rest]


def bring_to_end(run: Path, allow: Sequence[str], console: Screen) -> None:
    """Train a first stage to its end, in a process of its own, unless that has been done."""
    stage = Stage("first stage", run, OmegaConf.create({}))
    if not is_trained(run):
        _refuse_ranks(run)
    # Slurm tells all processes of a job to stop; this one only has to live on.
    before = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    try:
        while not is_trained(run):
            if is_worked_on(run):
                time.sleep(_ASK_EVERY)
            else:
                _First([stage], "", allow, console).work()
    finally:
        signal.signal(signal.SIGUSR1, before)


class _First(TrainAndEvaluate[Stage]):
    """Train, and leave out the evaluation: a first stage segments nothing."""

    def is_done(self, training: Stage) -> bool:
        return is_trained(training.run)

    def ended(self, training: Stage, code: int) -> list[str] | None:
        super().ended(training, code)
        return None

    def failed(self, why: str) -> None:
        raise UserError(f"{why}; the same command goes on")


def _is_same(file: Path, config: DictConfig) -> bool:
    before = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    return before == OmegaConf.to_container(config, resolve=False)


def _refuse_ranks(run: Path) -> None:
    """Refuse to begin it on each rank of a job that something else has started."""
    count = os.environ.get("WORLD_SIZE", "1")
    if "SLURM_PROCID" in os.environ:
        count = os.environ.get("SLURM_NTASKS", count)
    if int(count) > 1:
        raise UserError(
            f"its first stage has to end before {count} processes can begin with it; start it as a "
            f"job of its own, with all of them: bts train {run}"
        )
