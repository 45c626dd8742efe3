"""An environment of its own for what other people use; ours stays as it is."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import bts_lightning
from bts_lightning.errors import UserError

REQUIREMENTS = Path(__file__).with_name("peers.txt")
ENVIRONMENT = Path(".venv-bench")
# One module of each peer; to import them all takes seconds, to look for them none.
MODULES = ("monai", "medpy", "surface_distance", "nnunetv2", "batchgeneratorsv2", "torchio")


def python_with_peers() -> Path:
    """Give a Python that has all peers: this one, or one in `.venv-bench`, made if need be."""
    if not _missing(Path(sys.executable)):
        return Path(sys.executable)
    python = (ENVIRONMENT / "bin" / "python").absolute()
    if not python.exists() or _missing(python):
        _make(python)
    return python


def _missing(python: Path) -> list[str]:
    look = "import sys; from importlib.util import find_spec as f; "
    look += "print(*(m for m in sys.argv[1:] if f(m) is None))"
    answer = subprocess.run(
        [str(python), "-c", look, *MODULES], capture_output=True, text=True, check=True
    )
    return answer.stdout.split()


def _make(python: Path) -> None:
    print(f"making {ENVIRONMENT} for the peers, once")
    if not python.exists():
        venv.create(ENVIRONMENT, with_pip=False)
        # What is installed here counts there too, so that only the peers are fetched.
        home = sysconfig.get_path("purelib")
        inside = subprocess.run(
            [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        line = f"import site; site.addsitedir({home!r})\n"
        (Path(inside) / "usual_environment.pth").write_text(line, encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*pip, "--requirement", str(REQUIREMENTS)], capture_output=True, text=True, check=False
    )
    if done.returncode or (missing := _missing(python)):
        last = (done.stderr.strip().splitlines() or [f"{missing} are still missing"])[-1]
        raise UserError(
            f"the peers of {REQUIREMENTS.name} cannot be installed into {ENVIRONMENT}: {last}; "
            "`bts bench --no-peers` measures ours alone"
        )


def environment() -> dict[str, str]:
    """Let another Python find this very package, and print what it has to say at once."""
    ours = str(Path(bts_lightning.__file__).parents[1])
    inherited = os.environ.get("PYTHONPATH")
    return os.environ | {
        "PYTHONPATH": f"{ours}{os.pathsep}{inherited}" if inherited else ours,
        "PYTHONUNBUFFERED": "1",
    }
