"""`bts agent`: take trials of a W&B sweep from here, with this Python, until it is over."""

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bts_lightning.errors import Parser, UserError
from bts_lightning.loggers import has_credentials


def main(words: Sequence[str]) -> int:
    """Join a sweep that `bts sweep` or the W&B page has created."""
    parser = Parser(prog="bts agent", description=__doc__)
    parser.add_argument("sweep", help="as entity/project/id; bts sweep prints it")
    parser.add_argument("--count", type=int, help="trials for this agent (no end)")
    args = parser.parse_args(list(words))
    if not 1 <= len(args.sweep.split("/")) <= 3 or "" in args.sweep.split("/"):
        raise UserError(f"{args.sweep} is no sweep; write entity/project/id")
    if args.count is not None and args.count < 1:
        raise UserError(f"--count is {args.count}; give 1 or more")
    require_account()
    _use_this_python()
    # Trials that fail within seconds are what a sweep over sizes finds; go on after them.
    os.environ.setdefault("WANDB_AGENT_DISABLE_FLAPPING", "true")
    # It gives up when all of the first so many fail; those that hyperband stops count as well.
    os.environ.setdefault("WANDB_AGENT_MAX_INITIAL_FAILURES", "10")
    import wandb

    with server_errors():
        wandb.agent(args.sweep, count=args.count)
    return 0


def require_account() -> None:
    """Say what to do when there is no way to log in, before wandb asks on the terminal."""
    if not has_credentials():
        raise UserError(
            "no W&B account is set up here (or WANDB_MODE is offline); run `wandb login`, or sweep "
            "without an account: bts sweep EXPERIMENT --local"
        )


@contextmanager
def server_errors() -> Iterator[None]:
    """Turn what the server refuses, or its absence, into one line."""
    import wandb
    from wandb.errors import AuthenticationError, CommError, UsageError

    try:
        yield
    except (AuthenticationError, CommError, UsageError, ValueError) as error:
        host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
        said = " ".join(str(error).split())[:300]
        raise UserError(
            f"W&B at {host}: {said}; without it: bts sweep EXPERIMENT --local"
        ) from error
    finally:
        wandb.teardown()


def _use_this_python() -> None:
    """Let `python` in a trial's command be ours, also where no environment is active."""
    folder = Path(sys.executable).parent
    os.environ["PATH"] = os.pathsep.join([str(folder), os.environ.get("PATH", "")])
    found = shutil.which("python")
    if found is None or Path(found).parent != folder:
        raise UserError(
            f"there is no `python` beside {sys.executable}, and W&B's agent starts trials by that "
            "name; install into a virtual environment"
        )
