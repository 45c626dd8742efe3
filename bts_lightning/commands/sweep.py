"""`bts sweep`: search hyper-parameters, with Weights & Biases or on this machine alone."""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from bts_lightning import config as configuration
from bts_lightning.agent import require_account, server_errors
from bts_lightning.errors import Parser, UserError
from bts_lightning.merge import is_override
from bts_lightning.sweep_file import EXPERIMENT, Sweep, check_sweep, find_sweep, read_sweep

SWEEPS = Path("sweeps")
# The logger that a trial needs whatever the experiment says.
_WANDB = "logger.wandb._target_=bts_lightning.loggers.Wandb"
console = Console(highlight=False, soft_wrap=True)


def main(words: Sequence[str]) -> int:
    """Start a sweep over an experiment, or go on with a local one."""
    args, overrides = _parser().parse_known_intermixed_args(list(words))
    for word in overrides:
        if not is_override(word):
            raise UserError(f"unknown option {word}; see: bts sweep --help")
    if args.agents is not None and args.agents < (1 if args.local else 0):
        raise UserError(f"--agents is {args.agents}; give 1 or more")
    if args.count is not None and args.count < 1:
        raise UserError(f"--count is {args.count}; give 1 or more")
    allowed = [part for package in args.allow for part in ("--allow", package)]
    given = [*args.words, *overrides]
    file, stem = find_sweep(args.sweep, given)
    experiments = "+".join(Path(word).stem for word in given if not is_override(word))
    named = re.sub(r"[^\w.+-]+", "_", args.name or f"{experiments or 'program'}-{stem}")
    sweep = read_sweep(file, named)
    takes_experiment = EXPERIMENT in sweep.command
    if takes_experiment and not experiments:
        raise UserError(f"name the experiment to search ({file}), as: bts sweep a2fseg")
    check_sweep(sweep, given, args.allow)
    # Where the sweep is only created, the data may be on other machines.
    if takes_experiment and args.agents != 0:
        # Imported late, as torch below: a help text needs neither.
        from bts_lightning.runs import require_data

        require_data(configuration.load(given, allow=args.allow))
    if not args.local:
        return _with_wandb(sweep, [*given, *allowed], args)
    # Optuna is not needed for the other kind.
    from bts_lightning.local_sweep import run_local

    return run_local(
        sweep,
        [*given, *allowed],
        folder=args.folder / named,
        cap=args.count or sweep.run_cap,
        places=share_gpus(args.agents),
        console=console,
    )


def share_gpus(agents: int | None) -> list[str | None]:
    """Say for each agent what CUDA_VISIBLE_DEVICES should be; None leaves it as it is.

    Without a number there is one agent a GPU. Fewer agents than GPUs get several each, more share.
    """
    if agents == 1:
        return [None]
    gpus = _gpus()
    if not gpus:
        return [None] * (agents or 1)
    agents = agents or len(gpus)
    if agents > len(gpus):
        return [gpus[i % len(gpus)] for i in range(agents)]
    return [",".join(gpus[i::agents]) for i in range(agents)]


def _parser() -> Parser:
    parser = Parser(prog="bts sweep", description=__doc__)
    parser.add_argument("words", nargs="*", metavar="EXPERIMENT|KEY=VALUE", help="what to train")
    parser.add_argument("--sweep", help="name or file of the sweep (that of the experiment)")
    parser.add_argument("--local", action="store_true", help="without a W&B account")
    parser.add_argument("--agents", type=int, help="trials at a time (one a GPU); 0: create only")
    parser.add_argument("--count", type=int, help="trials in all (run_cap of the file)")
    parser.add_argument("--name", help="of the sweep (EXPERIMENT-SWEEP)")
    parser.add_argument("--folder", type=Path, default=SWEEPS, help="of local ones (%(default)s)")
    parser.add_argument("--project", help="W&B project (bts_lightning)")
    parser.add_argument("--entity", help="W&B entity (your default one)")
    parser.add_argument("--allow", action="append", default=[], metavar="PACKAGE")
    return parser


def _with_wandb(sweep: Sweep, words: list[str], args: argparse.Namespace) -> int:
    """Create the sweep on the server and start agents."""
    require_account()
    names = [word for word in words if not is_override(word)]
    turned_on = [_WANDB] if names else []
    words = [*names, *turned_on, *(word for word in words if is_override(word))]
    tree = sweep.for_wandb(words, args.count) | ({"name": args.name} if args.name else {})
    # What wandb does with its projects is on the command line of this process only.
    import wandb

    project = args.project or tree.get("project") or os.environ.get("WANDB_PROJECT")
    entity = args.entity or tree.get("entity") or os.environ.get("WANDB_ENTITY")
    with server_errors():
        name = wandb.sweep(tree, entity=entity, project=project or "bts_lightning")
        entity = entity or os.environ.get("WANDB_ENTITY") or wandb.Api().default_entity
    path = f"{entity}/{project or 'bts_lightning'}/{name}"
    console.print(f"sweep   {path}\njoin    bts agent {path}")
    wandb.teardown()
    if args.agents == 0:
        return 0
    return _start_agents(path, share_gpus(args.agents))


def _start_agents(path: str, places: Sequence[str | None]) -> int:
    """Run one agent a place until the sweep is over; Ctrl-C reaches them by itself."""
    agents = []
    for place in places:
        environment = dict(os.environ)
        if place is not None:
            environment["CUDA_VISIBLE_DEVICES"] = place
        command = [sys.executable, "-m", "bts_lightning", "agent", path]
        agents.append(subprocess.Popen(command, env=environment))
    codes = []
    for agent in agents:
        while agent.poll() is None:
            # The agents ask a second time before they kill; wait for what they decide.
            with suppress(KeyboardInterrupt):
                agent.wait()
        codes.append(agent.returncode)
    return max(abs(code) for code in codes)


def _gpus() -> list[str]:
    """List the GPUs as CUDA_VISIBLE_DEVICES names them."""
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return [part.strip() for part in visible.split(",")]
    # Imported late: a help text needs no torch.
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]
