"""Loggers that go on after a resume and never need an account."""

import csv
import hashlib
import netrc
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only


class Wandb(WandbLogger):
    """Weights & Biases, offline by itself when there are no credentials.

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
        run = Path(save_dir).resolve().parent
        offline = not _has_credentials()
        # An agent of a sweep has chosen the id already.
        chosen = os.environ.get("WANDB_RUN_ID")
        super().__init__(
            name=f"{run.parent.name}/{run.name}",
            id=chosen or hashlib.sha256(str(run).encode()).hexdigest()[:12],
            save_dir=save_dir,
            project=os.environ.get("WANDB_PROJECT", project),
            offline=offline,
            resume="allow",
            entity=entity,
            group=group,
            tags=tags,
        )
        if offline:
            rank_zero_info(f"W&B is offline; later: wandb sync {save_dir}/wandb/offline-run-*")


class Csv(Logger):
    """One `metrics.csv` of step, metric and value, in which a resumed training goes on.

    Lightning's own CSV logger deletes an existing file and rewrites it for each new column; rows of
    this one are only ever appended.
    """

    def __init__(self, *, save_dir: str) -> None:
        super().__init__()
        self.file = Path(save_dir) / "metrics.csv"

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
        new = not self.file.exists()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(("step", "metric", "value"))
            writer.writerows((step, name, repr(float(value))) for name, value in metrics.items())

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: `config.yaml` in the run holds them."""

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drop the rows after a step that training goes back to, whole or not at all."""
        if not self.file.exists():
            return
        with self.file.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        # Lightning counts the row of a step from 0, `global_step` the steps that are done.
        kept = [rows[0], *(row for row in rows[1:] if len(row) == 3 and int(row[0]) < step)]
        temporary = self.file.with_suffix(".part")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(kept)
        temporary.replace(self.file)


def read_metrics(file: Path) -> dict[str, list[tuple[int, float]]]:
    """Read a `metrics.csv` into a curve for each metric."""
    curves: dict[str, list[tuple[int, float]]] = {}
    with file.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            curves.setdefault(row["metric"], []).append((int(row["step"]), float(row["value"])))
    return curves


def _has_credentials() -> bool:
    """Look where wandb itself looks, without importing it or asking the network."""
    mode = os.environ.get("WANDB_MODE")
    if mode in ("offline", "disabled", "dryrun"):
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split(":")[0]
    try:
        return netrc.netrc().authenticators(host) is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False
