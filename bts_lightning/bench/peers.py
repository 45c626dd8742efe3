"""An environment of its own for what other people use; ours stays as it is."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bts_lightning
from bts_lightning.errors import UserError

REQUIREMENTS = Path(__file__).with_name("peers.txt")
ENVIRONMENT = Path(".venv-bench")
# What was tried last, and what could not be had.
RECORD = "peers.json"
# One module of each peer; to import them all takes seconds, to look for them none.
MODULES = ("monai", "medpy", "surface_distance", "nnunetv2", "batchgeneratorsv2", "torchio")


def python_with_peers() -> Path:
    """Give a Python that has the peers: this one, or one in `.venv-bench`, made if need be.

    A peer that cannot be installed is said to be so, here and in the page, and stops nothing.
    """
    if not _missing(Path(sys.executable)):
        return Path(sys.executable)
    python = (ENVIRONMENT / "bin" / "python").absolute()
    if not python.exists():
        _make(python)
    if _missing(python) and _tried(ENVIRONMENT).get("wanted") != _wanted():
        _install(python)
    return python


def not_installed() -> dict[str, str]:
    """Tell which requirements this Python could not get, and why."""
    failed: dict[str, str] = _tried(Path(sys.prefix)).get("failed", {})
    return failed


def _missing(python: Path) -> list[str]:
    look = "import sys; from importlib.util import find_spec as f; "
    look += "print(*(m for m in sys.argv[1:] if f(m) is None))"
    answer = subprocess.run(
        [str(python), "-P", "-c", look, *MODULES], capture_output=True, text=True, check=True
    )
    return answer.stdout.split()


def _make(python: Path) -> None:
    venv.create(ENVIRONMENT, with_pip=False)
    # What is installed here counts there too: only the peers are fetched, and torch is ours.
    home = sysconfig.get_path("purelib")
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    answer = subprocess.run(
        [str(python), "-P", "-c", ask], capture_output=True, text=True, check=True
    )
    line = f"import site; site.addsitedir({home!r})\n"
    place = Path(answer.stdout.strip()) / "usual_environment.pth"
    place.write_text(line, encoding="utf-8")


def _install(python: Path) -> None:
    print(f"installing the peers into {ENVIRONMENT}, once", flush=True)
    wanted, failed = _wanted(), {}
    if _pip(python, wanted):
        # One at a time, so that one that cannot be had does not keep out the others.
        failed = {name: reason for name in wanted if (reason := _pip(python, [name]))}
    for name, reason in failed.items():
        print(f"  {name} cannot be installed: {reason}", flush=True)
    record = {"wanted": wanted, "failed": failed}
    (ENVIRONMENT / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _pip(python: Path, requirements: Sequence[str]) -> str:
    """Install these and nothing that they ask for; give the last line of what went wrong."""
    command = [sys.executable, "-P", "-m", "pip", "--python", str(python), "install", "--quiet"]
    command += ["--no-deps", "--disable-pip-version-check", *requirements]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stderr.strip().splitlines() or ["pip failed"]
    return lines[-1].removeprefix("ERROR: ") if done.returncode else ""


def _wanted() -> list[str]:
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _tried(environment: Path) -> dict[str, Any]:
    file = environment / RECORD
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return content


def run_bts(
    *words: str, folder: Path | None = None, seconds: float | None = None, **variables: str
) -> str:
    """Run `bts` in a process of its own; give what it prints.

    A failure raises `UserError` with the last lines, one that takes longer `TimeoutExpired`.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-m", "bts_lightning", *words],
        cwd=folder,
        env=environment() | {"WANDB_MODE": "disabled"} | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
    )
    if done.returncode:
        raise UserError(f"bts {' '.join(words)} failed:\n{done.stderr.strip()[-500:]}")
    return done.stdout


def environment() -> dict[str, str]:
    """Let another Python find this very package, and print what it has to say at once."""
    ours = str(Path(bts_lightning.__file__).parents[1])
    inherited = os.environ.get("PYTHONPATH")
    return os.environ | {
        "PYTHONPATH": f"{ours}{os.pathsep}{inherited}" if inherited else ours,
        "PYTHONUNBUFFERED": "1",
    }
