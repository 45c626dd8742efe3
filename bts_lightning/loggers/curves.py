"""The table of curves, in which a resumed training goes on."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from bts_lightning.files import checksum, content, write_whole

_HEADER = ["step", "metric", "value"]


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
