"""`bts sweep`: search hyper-parameters, with Weights & Biases or on this machine alone."""

import argparse
import re
from pathlib import Path

from bts_lightning import config as configuration
from bts_lightning import runs
from bts_lightning.commands.words import names_among, takes_words
from bts_lightning.errors import Parser, UserError
from bts_lightning.report.screen import Screen

SWEEPS = Path("sweeps")
console = Screen()


def add_arguments(parser: Parser) -> None:
    takes_words(parser, "EXPERIMENT|KEY=VALUE", "what to train")
    parser.add_argument("--sweep", help="name or file of the sweep (that of the experiment)")
    parser.add_argument("--local", action="store_true", help="without a W&B account")
    parser.add_argument("--agents", type=int, help="trials at a time (one a GPU); 0: create only")
    parser.add_argument("--count", type=int, help="trials in all (run_cap of the file)")
    parser.add_argument("--name", help="of the sweep (EXPERIMENT-SWEEP)")
    parser.add_argument("--folder", type=Path, default=SWEEPS, help="of local ones (%(default)s)")
    parser.add_argument("--project", help="W&B project (bts_lightning)")
    parser.add_argument("--entity", help="W&B entity (your default one)")


def run(args: argparse.Namespace) -> int:
    """Start a sweep over an experiment, or go on with a local one."""
    if args.agents is not None and args.agents < (1 if args.local else 0):
        raise UserError(f"--agents is {args.agents}; give 1 or more")
    if args.count is not None and args.count < 1:
        raise UserError(f"--count is {args.count}; give 1 or more")
    allowed = [part for package in args.allow for part in ("--allow", package)]
    given = args.words
    experiments = "+".join(Path(name).stem for name in names_among(given))
    if experiments:
        configuration.check_names(configuration.load(given, allow=args.allow))
    # SciPy, later torch, Lightning and Optuna: neither a help text nor a mistake needs them.
    from bts_lightning.sweep.file import EXPERIMENT, check_sweep, find_sweep, read_sweep

    file, stem = find_sweep(args.sweep, given)
    named = re.sub(r"[^\w.+-]+", "_", args.name or f"{experiments or 'program'}-{stem}")
    sweep = read_sweep(file, named)
    takes_experiment = EXPERIMENT in sweep.command
    if takes_experiment and not experiments:
        raise UserError(f"name the experiment to search ({file}), as: bts sweep a2fseg")
    check_sweep(sweep, given, args.allow)
    # Where the sweep is only created, the data may be on other machines.
    if takes_experiment and args.agents != 0:
        runs.require_data(configuration.load(given, allow=args.allow))
    if not args.local:
        from bts_lightning.sweep.wandb import run_with_wandb

        return run_with_wandb(sweep, [*given, *allowed], args, console)
    from bts_lightning.runs.devices import share_devices
    from bts_lightning.sweep.worker import run_local

    return run_local(
        sweep,
        [*given, *allowed],
        folder=args.folder / named,
        cap=args.count or sweep.run_cap,
        places=share_devices(args.agents),
        console=console,
    )
