"""`bts study`: train and evaluate experiments × seeds × folds, and compare them fairly."""

import argparse
import re
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from omegaconf import OmegaConf
from rich.console import Console
from rich.markup import escape

from bts_lightning import config as configuration
from bts_lightning import runs
from bts_lightning.errors import ConfigError, Parser, UserError
from bts_lightning.merge import is_override
from bts_lightning.processes import (
    Training,
    end_orphan,
    is_worked_on,
    leave_sign,
    reason,
    sigterm_as_interrupt,
    take_sign_away,
)
from bts_lightning.study_report import Result, write_study

STUDIES = Path("studies")
_ASK_EVERY = 10.0
_SEVERAL = "name the experiments in one word, as: bts study \"rfnet a2fseg 'rfnet medmap'\""
console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Unit:
    """One training of a study with its evaluation; `words` are those of `bts train`."""

    experiment: str
    seed: int
    fold: int | None
    run: Path
    words: tuple[str, ...]

    @property
    def title(self) -> str:
        """Say which one it is."""
        return f"{self.experiment}, seed {self.seed}" + (f", fold {self.fold}" if self.fold else "")

    @property
    def is_trained(self) -> bool:
        """Say whether its training has come to its end."""
        return (self.run / "trained").is_file()

    @property
    def evaluation(self) -> Path | None:
        """Name its evaluation, once that is whole."""
        folder = self.run / "evaluation" / "test"
        return folder if (folder / "cases.csv").is_file() else None


def main(words: Sequence[str]) -> int:
    """Run what is left of a study, and write its table."""
    args, overrides = _parser().parse_known_intermixed_args(list(words))
    folder, units = _plan(args, overrides)
    if args.slurm:
        print(_slurm_script(list(words), folder, len(units)))
        return 0
    if args.only is not None:
        if not 0 <= args.only < len(units):
            raise UserError(f"--only is {args.only}; the study has units 0 to {len(units) - 1}")
        # Meant for the training, which saves its state; we only have to live on.
        signal.signal(signal.SIGUSR1, lambda number, frame: None)
        return _work(units, args.only)
    failed = _work(units)
    if failed == 130:
        return failed
    done = [unit for unit in units if unit.evaluation]
    if not done:
        raise UserError(f"no training of the study in {folder} has come to its evaluation")
    results = [Result.read(u.experiment, u.seed, u.fold, u.evaluation or u.run) for u in done]
    write_study(folder, results, len(units), console)
    return failed


def _parser() -> Parser:
    parser = Parser(prog="bts study", description=__doc__)
    parser.add_argument(
        "experiments", nargs="?", help="as one word; quote those that are several: " + _SEVERAL
    )
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="for all of them")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, … (%(default)s)")
    parser.add_argument("--folds", type=int, help="of cross-validation (the experiment's split)")
    parser.add_argument("--name", help="folder below studies (from the experiments)")
    parser.add_argument("--folder", type=Path, default=STUDIES, help="of studies (%(default)s)")
    parser.add_argument("--slurm", action="store_true", help="print a job array, run nothing")
    parser.add_argument("--only", type=int, metavar="I", help="one unit, for a job array")
    parser.add_argument("--allow", action="append", default=[], metavar="PACKAGE")
    return parser


def _plan(args: argparse.Namespace, rest: Sequence[str]) -> tuple[Path, list[Unit]]:
    """List the trainings of a study, after all that can be wrong with them was looked for."""
    overrides = [*args.words, *rest]
    if not (args.experiments or "").strip():
        raise UserError(_SEVERAL)
    for word in overrides:
        if not is_override(word):
            raise UserError(
                f"unknown option {word}; see: bts study --help"
                if word.startswith("-")
                else f"{word} is no key=value; {_SEVERAL}"
            )
        key = word.lstrip("-").partition("=")[0]
        if key == "seed" or (key == "data.split" and args.folds):
            raise UserError(f"{word}: a study sets {key} itself; use --seeds and --folds")
    if args.seeds < 1:
        raise UserError(f"--seeds is {args.seeds}; give 1 or more")
    if args.folds is not None and args.folds < 3:
        raise UserError(f"--folds is {args.folds}; one tests, one validates, so give 3 or more")
    try:
        experiments = [tuple(group.split()) for group in shlex.split(args.experiments)]
    except ValueError:
        raise UserError(f"{args.experiments}: a quote is not closed; {_SEVERAL}") from None
    names = [_file_name("+".join(group)) for group in experiments]
    if len(set(names)) < len(names):
        raise UserError(f"{args.experiments}: an experiment stands there twice")
    for group in experiments:
        config = configuration.load([*group, *overrides], allow=args.allow)
        configuration.check(config, supplied=configuration.SUPPLIED)
        if not args.slurm:
            runs.require_data(config)
    folder = args.folder / _file_name(args.name or "_".join(names))
    _keep(folder, {"overrides": overrides, "folds": args.folds})
    allowed = [part for package in args.allow for part in ("--allow", package)]
    # Seeds outermost: after the first round each experiment has been trained on every fold.
    units = [
        _unit(folder, group, seed, fold, args.folds, (*overrides, *allowed))
        for seed in range(args.seeds)
        for group in experiments
        for fold in (range(1, args.folds + 1) if args.folds else [None])
    ]
    return folder, units


def _unit(
    folder: Path,
    group: tuple[str, ...],
    seed: int,
    fold: int | None,
    folds: int | None,
    words: tuple[str, ...],
) -> Unit:
    own = [f"seed={seed}", *([f"data.split=fold {fold} of {folds}"] if fold else [])]
    name = f"seed-{seed}" + (f"_fold-{fold}" if fold else "")
    experiment = "+".join(group)
    return Unit(
        experiment, seed, fold, folder / _file_name(experiment) / name, (*group, *own, *words)
    )


def _work(units: Sequence[Unit], only: int | None = None) -> int:
    """Bring one unit after the other to its evaluation; a failing one does not stop the rest."""
    failed = 0
    for number, unit in enumerate(units, 1):
        if only not in (None, number - 1):
            continue
        if only is not None:
            _outwait(unit)
        if unit.evaluation:
            continue
        if is_worked_on(unit.run):
            console.print(f"{unit.title}: somebody works on it; left out", markup=False)
            failed = 1
            continue
        console.print(f"[bold]{number}/{len(units)}[/] {escape(f'{unit.title}: {unit.run}')}")
        try:
            with sigterm_as_interrupt():
                _bring_on(unit)
        except UserError as error:
            console.print(f"[red]failed[/]: {escape(str(error))}")
            failed = 1
        except KeyboardInterrupt:
            console.print("interrupted; the same command goes on")
            return 130
    return failed


def _outwait(unit: Unit) -> None:
    """Let a task that Slurm starts again elsewhere find out that the machine before is dead."""
    if not unit.evaluation and is_worked_on(unit.run):
        console.print(f"{unit.title}: waits for who works on it, or is dead", markup=False)
    while not unit.evaluation and is_worked_on(unit.run):
        time.sleep(_ASK_EVERY)


def _bring_on(unit: Unit) -> None:
    """Train, or go on training, and evaluate."""
    end_orphan(unit.run)
    again = [str(unit.run), *_allowed(unit.words)]
    try:
        if not unit.is_trained:
            _run(unit, "train", *(again if runs.is_run(unit.run) else unit.words))
            runs.write_text(unit.run / "trained", "")
        _run(unit, "evaluate", *again)
    finally:
        # A job that Slurm starts again on another machine must not wait for what has ended here.
        take_sign_away(unit.run)


def _run(unit: Unit, *words: str) -> None:
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


def _keep(folder: Path, facts: dict[str, object]) -> None:
    """Keep what all trainings share, and refuse to mix two studies."""
    text, file = OmegaConf.to_yaml(facts), folder / "study.yaml"
    if not file.exists():
        runs.write_text(file, text)
    elif file.read_text(encoding="utf-8") != text:
        raise ConfigError(
            f"{folder} holds a study with other overrides or folds (see {file}); name this one "
            "with --name, or delete it"
        )


def _slurm_script(words: list[str], folder: Path, count: int) -> str:
    rest = [word for word in words if word != "--slurm"]
    line = shlex.join(["bts", "study", *rest])
    command = shlex.join([sys.executable, "-m", "bts_lightning", "study", *rest])
    return f"""#!/bin/bash
#SBATCH --job-name={folder.name}
#SBATCH --array=0-{count - 1}
#SBATCH --ntasks=1
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=SIGUSR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={folder}/slurm-%a.log
# One training with its evaluation a task; what is finished ends at once, what was stopped goes on.
# When all are done, this writes the table: {line}
cd {shlex.quote(str(Path.cwd()))}
srun {command} --only "$SLURM_ARRAY_TASK_ID\""""


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", text)
