"""`bts study`: train and evaluate experiments × seeds × folds, and compare them fairly."""

import argparse
import signal
from pathlib import Path

from bts_lightning.commands.words import takes_words
from bts_lightning.errors import Parser, UserError
from bts_lightning.report.screen import Screen
from bts_lightning.study.plan import SEVERAL, STUDIES, plan_study, slurm_script

console = Screen()


def add_arguments(parser: Parser) -> None:
    takes_words(parser, "EXPERIMENTS|KEY=VALUE", SEVERAL)
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, … (%(default)s)")
    parser.add_argument("--folds", type=int, help="of cross-validation (the experiment's split)")
    parser.add_argument("--name", help="folder below studies (from the experiments)")
    parser.add_argument("--folder", type=Path, default=STUDIES, help="of studies (%(default)s)")
    parser.add_argument("--published", default="", metavar="SOURCE", help="averages to show beside")
    parser.add_argument("--slurm", action="store_true", help="print a job array, run nothing")
    parser.add_argument("--only", type=int, metavar="I", help="one training, for a job array")


def run(args: argparse.Namespace) -> int:
    """Run what is left of a study, and write its table."""
    if args.published:
        # Before anything is trained; it needs pandas, as what follows below.
        from bts_lightning.report.published import averages

        averages(args.published)
    folder, trainings, groups = plan_study(args)
    if args.slurm:
        print(slurm_script(args.typed, folder, len(trainings)))
        return 0
    # pandas and what draws the tables, which neither a help text nor a mistake needs.
    from bts_lightning.study.report import Outcome, write_study
    from bts_lightning.study.work import work

    if args.only is not None:
        if not 0 <= args.only < len(trainings):
            raise UserError(
                f"--only is {args.only}; the study has trainings 0 to {len(trainings) - 1}"
            )
        # Meant for the training, which saves its state; we only have to live on.
        signal.signal(signal.SIGUSR1, lambda number, frame: None)
        return work(trainings, console, args.allow, args.only)
    failed = work(trainings, console, args.allow)
    if failed == 130:
        return failed
    done = [training for training in trainings if training.evaluation]
    if not done:
        raise UserError(f"no training of the study in {folder} has come to its evaluation")
    results = [Outcome.read(t.experiment, t.seed, t.fold, t.evaluation or t.run) for t in done]
    write_study(folder, results, len(trainings), console, args.published, groups)
    return failed
