"""Sweeps that a W&B server leads."""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from bts_lightning.config.merge import is_override
from bts_lightning.errors import UserError
from bts_lightning.loggers import check_server, has_credentials
from bts_lightning.report.screen import Screen
from bts_lightning.runs.devices import share_devices
from bts_lightning.sweep.file import Sweep

# The logger that a trial needs whatever the experiment says.
_WANDB = "logger.wandb._target_=bts_lightning.loggers.Wandb"


def run_with_wandb(
    sweep: Sweep, words: list[str], args: argparse.Namespace, console: Screen
) -> int:
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
    return _start_agents(path, share_devices(args.agents))


def _start_agents(path: str, places: Sequence[Mapping[str, str]]) -> int:
    """Run one agent a place until the sweep is over; Ctrl-C reaches them by itself."""
    command = [sys.executable, "-P", "-m", "bts_lightning", "agent", path]
    agents = [subprocess.Popen(command, env={**os.environ, **place}) for place in places]
    codes = []
    for agent in agents:
        while agent.poll() is None:
            # The agents ask a second time before they kill; wait for what they decide.
            with suppress(KeyboardInterrupt):
                agent.wait()
        codes.append(agent.returncode)
    return max(abs(code) for code in codes)


def require_account() -> None:
    """Say what to do when there is no way to log in, before wandb asks on the terminal."""
    check_server()
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


def use_this_python() -> None:
    """Let `python` in a trial's command be ours, also where no environment is active."""
    folder = Path(sys.executable).parent
    os.environ["PATH"] = os.pathsep.join([str(folder), os.environ.get("PATH", "")])
    found = shutil.which("python")
    if found is None or Path(found).parent != folder:
        raise UserError(
            f"there is no `python` beside {sys.executable}, and W&B's agent starts trials by that "
            "name; install into a virtual environment"
        )
