"""What a benchmark found: tables and claims, kept as JSON, so that pages join several machines."""

import argparse
import json
import math
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table as RichTable

from bts_lightning.errors import UserError
from bts_lightning.files import write_whole
from bts_lightning.report import document
from bts_lightning.report.screen import Screen

Cell = str | float | int | None
# Rows that others are divided by.
BESIDE = ("ours", "memcpy")


@dataclass(frozen=True)
class Table:
    """Rows under columns, and what must be known to read them.

    Attributes:
        again: words after `bts bench` that repeat one row, columns in braces.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    again: str = ""


@dataclass(frozen=True)
class Claim:
    """A ratio that we promise, beside what was measured."""

    what: str
    target: float
    measured: float

    @property
    def holds(self) -> bool:
        """Say whether the promise is kept."""
        return self.measured >= self.target


# What a GPU is to give, and how many times; where none was measured, the page says so.
GOALS = {
    "step": ("a2fseg step, official arithmetic (fp16) over ours", 2.0),
    "share": ("a2fseg step, share of the matrix product's peak", 0.3),
    "memory": ("a2fseg peak memory, official arithmetic over ours", 1.0),
    "subsets": ("a2fseg, 15 subsets of a case: loop over one pass", 10.0),
}


def goal(name: str, measured: float) -> Claim:
    """Hold what was measured against a goal."""
    return Claim(*GOALS[name], measured)


@dataclass
class Result:
    """All that one family of benchmarks found on one machine.

    Attributes:
        family: `loader`, `metrics` and so on.
        device: `cpu` or `cuda`.
        command: repeats it.
        machine: what it ran on, without its name.
        versions: of everything that was measured.
        settings: options that matter.
        seconds: the whole family took.
        absent: requirements that could not be installed, and why.
        day: it was measured, as 2026-01-31.
    """

    family: str
    device: str
    command: str
    machine: dict[str, str]
    versions: dict[str, str]
    settings: dict[str, Any]
    tables: list[Table] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    seconds: float = 0.0
    absent: dict[str, str] = field(default_factory=dict)
    day: str = ""

    def save(self, folder: Path) -> Path:
        """Write it as JSON; another run of the same family on the same device replaces it."""
        file = folder / f"{self.family}-{self.device}.json"
        return write_whole(file, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, file: Path) -> "Result":
        """Read what `save` wrote."""
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            content["tables"] = [Table(**table) for table in content["tables"]]
            content["claims"] = [Claim(**claim) for claim in content["claims"]]
            return cls(**content)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{file} is no result of `bts bench`; give a folder that holds nothing else"
            ) from error


def read_all(folders: Iterable[Path]) -> list[Result]:
    """Read the results of these folders; a later one replaces an earlier one of its kind."""
    results: dict[tuple[str, str], Result] = {}
    for folder in folders:
        for file in sorted(folder.glob("*.json")):
            result = Result.read(file)
            results[result.family, result.device] = result
    return list(results.values())


def shown(cell: Cell) -> str:
    """Write a cell with three digits that mean something."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "–"
    if isinstance(cell, str | int):
        return f"{cell:,}" if isinstance(cell, int) else cell
    if cell == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(cell))))
    return f"{cell:,.{digits}f}" if digits < 7 else f"{cell:.1e}"


def markdown(table: Table) -> list[str]:
    """Write a table, first column to the left, figures to the right."""
    numeric = [
        any(isinstance(row[i], int | float) for row in table.rows)
        for i in range(len(table.columns))
    ]
    aligned = ["---:" if right else "---" for right in numeric]
    rows = ([shown(cell) for cell in row] for row in table.rows)
    lines = document.table(table.columns, rows, aligned)
    again = [f"One row again: `bts bench {table.again}`."] if table.again else []
    return [*lines, *(f"\n{note}" for note in [*table.notes, *again])]


def chosen(names: Sequence[str], only: str) -> list[str]:
    """Give the rows whose name has `only` in it, and what they are compared with."""
    meant = [name for name in names if only in name]
    return [name for name in names if name in meant or name.startswith(BESIDE)] if meant else []


def again(args: argparse.Namespace, row: str) -> str:
    """Give the words that repeat one row: all options as given, networks and more of the row's."""
    words = shlex.split(args.command)[2:]
    kept = [shlex.quote(word) for word in words if word not in args.networks]
    return " ".join([*kept, row, "--results scratch/one"])


def show(result: Result) -> None:
    """Print what was found."""
    for table in result.tables:
        _print_table(table)
    for claim in result.claims:
        word = "holds" if claim.holds else "MISSED"
        print(f"{word:>6}  {claim.what}: {shown(claim.measured)}× (target {shown(claim.target)}×)")


def _print_table(table: Table) -> None:
    pretty = RichTable(*table.columns, title=table.title, title_justify="left")
    for row in table.rows:
        pretty.add_row(*(shown(cell) for cell in row))
    console = Screen(soft_wrap=False)
    console.print(pretty)
    for note in table.notes:
        console.print(note)


FAMILIES = {
    "loader": "training patches a second, beside TorchIO, MONAI, nnU-Net and the memory's limit",
    "metrics": "45 masks of a case, beside MONAI, medpy, surface-distance and SimpleITK",
    "subsets": "15 subsets of a case, beside a loop over masks, cases and windows",
    "step": "a training step per network and precision",
    "scale": "time and memory as cases and ranks grow",
    "gpu": "the rows of a GPU in eight minutes, with two short trainings",
}


# What a GPU does differently.
ON_GPU = ("loader", "subsets", "step", "gpu")
