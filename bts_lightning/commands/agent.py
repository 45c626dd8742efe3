"""`bts agent`: take trials of a W&B sweep from here, with this Python, until it is over."""

import argparse
import os

from bts_lightning.errors import Parser, UserError


def add_arguments(parser: Parser) -> None:
    parser.add_argument("sweep", help="as entity/project/id; bts sweep prints it")
    parser.add_argument("--count", type=int, help="trials for this agent (no end)")


def run(args: argparse.Namespace) -> int:
    """Join a sweep that `bts sweep` or the W&B page has created."""
    if not 1 <= len(args.sweep.split("/")) <= 3 or "" in args.sweep.split("/"):
        raise UserError(f"{args.sweep} is no sweep; write entity/project/id")
    if args.count is not None and args.count < 1:
        raise UserError(f"--count is {args.count}; give 1 or more")
    # It imports Lightning, which no help text needs.
    from bts_lightning.sweep.wandb import require_account, server_errors, use_this_python

    require_account()
    use_this_python()
    # Trials that fail within seconds are what a sweep over sizes finds; go on after them.
    os.environ.setdefault("WANDB_AGENT_DISABLE_FLAPPING", "true")
    # It gives up when all of the first so many fail; those that hyperband stops count as well.
    os.environ.setdefault("WANDB_AGENT_MAX_INITIAL_FAILURES", "10")
    import wandb

    with server_errors():
        wandb.agent(args.sweep, count=args.count)
    return 0
