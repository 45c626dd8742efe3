"""Loggers that go on after a resume and never need an account."""

import configparser
import csv
import hashlib
import io
import netrc
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from bts_lightning.errors import UserError
from bts_lightning.files import checksum, content, expanded, write_whole

# W&B's own servers, before its move and since.
_PUBLIC_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")
_HEADER = ["step", "metric", "value"]


class Wandb(WandbLogger):
    """Weights & Biases, offline by itself when there are no credentials or no answer.

    Args:
        save_dir: the run's log folder; its path names the W&B run, so a resume goes on in it.
        project: the W&B project; WANDB_PROJECT wins, as everywhere with wandb.
    """

    def __init__(
        self,
        *,
        save_dir: str,
        project: str = "bts_lightning",
        entity: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
    ) -> None:
        check_server()
        if not expanded("~").is_absolute():
            # Where a user has no home, wandb cannot even say where its settings would be.
            os.environ.setdefault("WANDB_CONFIG_DIR", str(Path(save_dir).resolve()))
        run = Path(save_dir).resolve().parent
        super().__init__(
            name=f"{run.parent.name}/{run.name}",
            id=hashlib.sha256(str(run).encode()).hexdigest()[:12],
            save_dir=save_dir,
            project=os.environ.get("WANDB_PROJECT", project),
            offline=not has_credentials(),
            resume="allow",
            entity=entity,
            group=group,
            tags=tags,
        )
        # The agent of a sweep has chosen these, and wandb complains when they are given again.
        self._in_sweep = "WANDB_SWEEP_ID" in os.environ
        if self._in_sweep:
            for chosen in ("id", "project", "entity"):
                self._wandb_init.pop(chosen)
        # Lightning passes it on; wandb warns of it since 0.22.
        self._wandb_init.pop("anonymous", None)
        if self._offline:
            self._say_offline()

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Start the W&B run; a server that does not answer must not stop a training."""
        if self._experiment is not None or self._save_dir is None:
            return super().experiment
        Path(self._save_dir).mkdir(parents=True, exist_ok=True)
        import wandb
        from wandb.errors import CommError

        try:
            return super().experiment
        except CommError as error:
            said = " ".join(str(error).split())
            if self._in_sweep:
                raise UserError(f"the W&B server of the sweep does not answer: {said}") from error
            rank_zero_info(f"W&B does not answer ({said})")
        wandb.teardown()
        self._offline = True
        self._say_offline()
        return super().experiment

    def _say_offline(self) -> None:
        rank_zero_info(f"W&B is offline; later: wandb sync {self._save_dir}/wandb/offline-run-*")


def report_failure() -> None:
    """Tell W&B that the run failed; of an error that becomes one line it would not learn."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and getattr(wandb, "run", None) is not None:
        wandb.finish(exit_code=1)


class Csv(Logger):
    """One `metrics.csv` of step, metric and value, in which a resumed training goes on.

    Lightning's own CSV logger deletes an existing file and rewrites it for each new column; rows of
    this one are only ever appended.
    """

    def __init__(self, *, save_dir: str) -> None:
        super().__init__()
        self.file = Path(save_dir) / "metrics.csv"
        self._ahead: set[tuple[object, ...]] = set()

    @property
    def name(self) -> str:
        """Name the logger as Lightning wants it."""
        return "csv"

    @property
    def version(self) -> str:
        """There is one table a run."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one row a value."""
        rows = [(step, name, repr(float(value))) for name, value in metrics.items()]
        self._append([row for row in rows if row[:2] not in self._ahead])
        self._ahead -= {row[:2] for row in rows}

    @rank_zero_only
    def log_ahead(self, metrics: dict[str, float], step: int) -> None:
        """Append rows now that will be logged soon, and are then passed over."""
        rows = [(step, name, repr(float(value))) for name, value in metrics.items()]
        self._append([row for row in rows if row[:2] not in self._ahead])
        self._ahead |= {row[:2] for row in rows}

    def _append(self, rows: Sequence[Sequence[object]]) -> None:
        new = not self.file.exists()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([_HEADER, *rows] if new else rows)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: `config.yaml` in the run holds them."""

    @rank_zero_only
    def rewind(self, step: int, seal: object = None) -> None:
        """Drop the rows after a step that training goes back to, whole or not at all.

        Args:
            step: the first one whose rows go.
            seal: what `seal` gave when the checkpoint was saved.
        """
        if not self.file.exists():
            return
        rows, broken = _read_rows(self.file)
        # A kill or a full disk cuts one row; more is damage.
        if broken > 1:
            rank_zero_info(f"{self.file}: {broken} rows cannot be read; left out")
        # Lightning counts the row of a step from 0, `global_step` the steps that are done.
        kept = [row for row in rows if int(row[0]) < step]
        match seal:
            case [int() as count, str() as told] if told != checksum(_lasting(kept)[:count]):
                rank_zero_info(f"{self.file} was changed since the checkpoint was saved")
        table = io.StringIO()
        csv.writer(table).writerows([_HEADER, *kept])
        write_whole(self.file, table.getvalue())

    def seal(self, step: int) -> tuple[int, str]:
        """Give count and checksum of the rows before a step, but for those that measure time."""
        rows = _lasting([row for row in _read_rows(self.file)[0] if int(row[0]) < step])
        return len(rows), checksum(rows)


def read_metrics(file: Path) -> dict[str, list[tuple[int, float]]]:
    """Read a `metrics.csv`, also while it is written, into a curve for each metric."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for step, metric, value in _read_rows(file)[0]:
        curves.setdefault(metric, []).append((int(step), float(value)))
    return curves


def _read_rows(file: Path) -> tuple[list[list[str]], int]:
    """Read the rows that are whole, and count the others."""
    # A last row without its end may have lost digits.
    *lines, rest = content(file).decode(errors="replace").splitlines(keepends=True) or [""]
    lines += [rest] if rest.endswith("\n") else []
    rows = [_row(line) for line in lines if line.rstrip() != ",".join(_HEADER)]
    whole = [row for row in rows if row is not None]
    return whole, len(rows) - len(whole) + (not rest.endswith("\n"))


def _lasting(rows: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    # A checkpoint of the same training is the same on a slower machine.
    return [row for row in rows if not row[1].startswith("speed/")]


def _row(line: str) -> list[str] | None:
    try:
        ((step, metric, value),) = csv.reader([line])
        return [str(int(step)), metric, repr(float(value))]
    except (ValueError, csv.Error):
        return None


def has_credentials() -> bool:
    """Look where wandb itself looks, without importing it or asking the network."""
    mode = os.environ.get("WANDB_MODE")
    if mode in ("offline", "disabled", "dryrun"):
        return False
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    address = os.environ.get("WANDB_BASE_URL") or _saved_address()
    hosts = (urlsplit(address).netloc,) if address else _PUBLIC_HOSTS
    file = os.environ.get("NETRC")
    try:
        known = netrc.netrc(expanded(file) if file else None)
    except (OSError, netrc.NetrcParseError):
        return False
    return any(known.authenticators(host) for host in hosts)


def check_server() -> None:
    """Refuse a server that a file in the current folder chooses: wandb would send the key there."""
    if os.environ.get("WANDB_BASE_URL") or not has_credentials():
        return
    here = Path(os.environ.get("WANDB_DIR") or ".")
    for file in (here / "wandb" / "settings", here / ".wandb" / "settings"):
        address = _address_in(file)
        if address is not None and address != _saved_address():
            raise UserError(
                f"{file} sends your W&B key to {address}; delete that line, or say that you mean "
                f"it: WANDB_BASE_URL={address}"
            )


def _saved_address() -> str | None:
    """Read where `wandb login --host` has written down a server."""
    folder = os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb"
    return _address_in(expanded(folder) / "settings")


def _address_in(file: Path) -> str | None:
    settings = configparser.ConfigParser(interpolation=None)
    try:
        settings.read(file)
    except (configparser.Error, OSError, UnicodeDecodeError):
        return None
    return settings.get("default", "base_url", fallback=None)
