"""A CSV manifest: any files under any names, one row a case."""

import csv
import re
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from typing import cast, get_args

from bts_lightning.data.layouts.case import LABEL_VALUES, Case, Fault, Numbering
from bts_lightning.errors import DataError, did_you_mean
from bts_lightning.files import content
from bts_lightning.modalities import MODALITIES

_COLUMNS = ("case", "patient", *MODALITIES, "label", "labels")


def read_manifest(path: Path) -> list[Case | Fault]:
    """Read a CSV, one row a case; paths are relative to it, an empty cell was never acquired."""
    try:
        # As a file that is opened as text is read, with any line end.
        text = TextIOWrapper(BytesIO(content(path)), encoding="utf-8-sig").read()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8 ({error.reason}); save it as such") from error
    try:
        table = [[cell.strip() for cell in row] for row in csv.reader(StringIO(text)) if row]
    except csv.Error as error:
        raise DataError(f"{path} is no CSV: {error}") from error
    columns, *rows = table or [[]]
    _check_columns(path, columns)
    if not rows:
        raise DataError(f"{path} has no case, only a line of columns")
    found: list[Case | Fault] = []
    seen: set[str] = set()
    for number, cells in enumerate(rows, start=2):
        row = dict.fromkeys(columns, "") | dict(zip(columns, cells, strict=False))
        name = _short(row["case"]) or f"line {number}"
        broken = _row_faults(path, name, row, seen)
        if len(cells) != len(columns):
            reason = f"line {number} has {len(cells)} cells; the first line has {len(columns)}"
            broken.append(Fault(name, path, reason))
        seen.add(name)
        found += broken or [_manifest_case(path.parent, row)]
    return found


def _check_columns(path: Path, columns: list[str]) -> None:
    for column in columns:
        if column not in _COLUMNS:
            raise DataError(f"{path}: unknown column {column!r}; {did_you_mean(column, _COLUMNS)}")
        if columns.count(column) > 1:
            raise DataError(f"{path} has two columns {column!r}; one of them means another")
    if "case" not in columns or not set(columns) & set(MODALITIES):
        raise DataError(f"{path} needs a column `case` and one or more of {', '.join(MODALITIES)}")


def _row_faults(manifest: Path, name: str, row: dict[str, str], seen: set[str]) -> list[Fault]:
    named = {what: row[what] for what in (*MODALITIES, "label") if row.get(what)}
    faults = [
        Fault(
            name,
            manifest.parent / _short(cell),
            f"named in {manifest.name}, column {what}, but {reason}",
        )
        for what, cell in named.items()
        if (reason := _not_there(manifest.parent / cell))
    ]
    if name in seen:
        faults.append(Fault(name, manifest, "this case stands on two lines"))
    # The name becomes a folder of the cache.
    if not re.fullmatch(r"\w[\w.+-]{,199}", row["case"]):
        faults.append(Fault(name, manifest, f"case {name!r} is not a plain file name"))
    if not any(row.get(modality) for modality in MODALITIES):
        faults.append(Fault(name, manifest, "no image is named"))
    if row.get("labels") and row["labels"] not in LABEL_VALUES:
        choices = ", ".join(get_args(Numbering))
        faults.append(
            Fault(name, manifest, f"labels is {_short(row['labels'])!r}; known are {choices}")
        )
    return faults


def _not_there(file: Path) -> str | None:
    try:
        return None if file.is_file() else "not there"
    except OSError as error:
        return f"cannot be looked at: {error.strerror}"


def _short(cell: str) -> str:
    """Show no more of a cell than fits on a screen."""
    return cell if len(cell) < 200 else f"{cell[:200]}…"


def _manifest_case(folder: Path, row: dict[str, str]) -> Case:
    # Without a word about the values they are taken as BraTS 2023 writes them.
    numbering = row.get("labels") or "brats2023"
    return Case(
        name=row["case"],
        patient=row.get("patient") or row["case"],
        layout="manifest",
        images={modality: folder / row[modality] for modality in MODALITIES if row.get(modality)},
        label=folder / row["label"] if row.get("label") else None,
        label_values=LABEL_VALUES[cast(Numbering, numbering)],
    )
