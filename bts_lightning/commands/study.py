"""`bts study`: train and evaluate experiments × seeds × folds, and compare them fairly."""

import argparse
import signal
from collections.abc import Sequence
from pathlib import Path

from bts_lightning.commands.words import takes_words
from bts_lightning.errors import Parser, UserError
from bts_lightning.report.screen import Screen
from bts_lightning.study.plan import SEVERAL, STUDIES, plan_study
from bts_lightning.study.slurm import slurm_options, slurm_script

console = Screen()


def add_arguments(parser: Parser) -> None:
    takes_words(parser, "EXPERIMENTS|KEY=VALUE", SEVERAL)
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, … (%(default)s)")
    parser.add_argument("--folds", type=int, help="of cross-validation (the experiment's split)")
    parser.add_argument("--name", help="folder below studies (from the experiments)")
    parser.add_argument("--folder", type=Path, default=STUDIES, help="of studies (%(default)s)")
    parser.add_argument("--published", default="", metavar="SOURCE", help="averages to show beside")
    parser.add_argument("--slurm", action="store_true", help="print a script of jobs, run nothing")
    parser.add_argument("--sbatch", metavar="OPTIONS", help='with --slurm, as "--gres=gpu:a100:1"')
    parser.add_argument("--only", type=int, metavar="I", help="one training, for a job array")
    parser.add_argument("--table", action="store_true", help="the table as it stands, no training")


def run(args: argparse.Namespace) -> int:
    """Run what is left of a study, and write its table."""
    if args.published:
        # Before anything is trained; it needs pandas, as what follows below.
        from bts_lightning.report.published import averages

        averages(args.published)
    options = slurm_options(args.sbatch or "")
    if args.sbatch is not None and not args.slurm:
        raise UserError("--sbatch is for --slurm, which prints the jobs")
    if args.only is not None and args.table:
        raise UserError("--only trains, and --table does not; leave one of the two out")
    folder, trainings, groups = plan_study(args)
    if args.slurm:
        on_gpu = "trainer.accelerator=cpu" not in args.words
        words = _without(args.typed, "--slurm", "--sbatch")
        print(slurm_script(words, folder, len(trainings), options, on_gpu=on_gpu), end="")
        return 0
    # pandas and what draws the tables, which neither a help text nor a mistake needs.
    from bts_lightning.study.report import Outcome, write_study
    from bts_lightning.study.work import unfinished, work

    if args.only is not None:
        if not 0 <= args.only < len(trainings):
            raise UserError(
                f"--only is {args.only}; the study has trainings 0 to {len(trainings) - 1}"
            )
        # Meant for the training, which saves its state; we only have to live on.
        signal.signal(signal.SIGUSR1, lambda number, frame: None)
        return work(trainings, console, args.allow, args.only)
    failed = 0 if args.table else work(trainings, console, args.allow)
    if failed == 130:
        return failed
    done = [training for training in trainings if training.evaluation]
    missing = [f"{t.name}: {unfinished(t)}" for t in trainings if t not in done]
    if not done:
        why = f"; {missing[0]}" if args.table else ""
        raise UserError(f"no training of the study in {folder} has come to its evaluation{why}")
    results = [Outcome.read(t.experiment, t.seed, t.fold, t.evaluation or t.run) for t in done]
    write_study(folder, results, missing, console, args.published, groups)
    return 1 if missing else failed


def _without(words: Sequence[str], *options: str) -> list[str]:
    """Leave out what asks for the script; the last option has a value."""
    kept: list[str] = []
    skips = False
    for word in words:
        if not skips and word.partition("=")[0] not in options:
            kept.append(word)
        skips = not skips and word == options[-1]
    return kept
