"""A CSV manifest: any files under any names, one row a case."""

import csv
import re
from io import StringIO
from pathlib import Path
from typing import cast, get_args

from bts_lightning.data.layouts.case import LABEL_VALUES, Case, Fault, LabelScheme
from bts_lightning.errors import DataError, did_you_mean
from bts_lightning.modalities import MODALITIES

_COLUMNS = ("case", "patient", *MODALITIES, "label", "labels")


def read_manifest(path: Path) -> list[Case | Fault]:
    """Read a CSV, one row a case; paths are relative to it, an empty cell was never acquired."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8 ({error.reason}); save it as such") from error
    table = csv.DictReader(StringIO(text))
    columns = [column.strip() for column in table.fieldnames or ()]
    _check_columns(path, columns)
    rows = [
        {c: (v or "").strip() for c, v in zip(columns, row.values(), strict=False)} for row in table
    ]
    found: list[Case | Fault] = []
    seen: set[str] = set()
    for number, row in enumerate(rows, start=2):
        name = row["case"] or f"line {number}"
        broken = _row_faults(path, name, row, seen)
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
    faults = [
        Fault(
            name,
            manifest.parent / row[what],
            f"named in {manifest.name}, column {what}, but not there",
        )
        for what in (*MODALITIES, "label")
        if row.get(what) and not (manifest.parent / row[what]).is_file()
    ]
    if name in seen:
        faults.append(Fault(name, manifest, "this case stands on two lines"))
    # The name becomes a folder of the cache.
    if not re.fullmatch(r"\w[\w.+-]*", row["case"]):
        faults.append(Fault(name, manifest, f"case {row['case']!r} is not a plain file name"))
    if not any(row.get(modality) for modality in MODALITIES):
        faults.append(Fault(name, manifest, "no image is named"))
    if row.get("labels") and row["labels"] not in LABEL_VALUES:
        choices = ", ".join(get_args(LabelScheme))
        faults.append(Fault(name, manifest, f"labels is {row['labels']!r}; known are {choices}"))
    return faults


def _manifest_case(folder: Path, row: dict[str, str]) -> Case:
    # Without a word about the values they are taken as stored, which is what BraTS 2023 writes.
    scheme = row.get("labels") or "brats2023"
    return Case(
        name=row["case"],
        patient=row.get("patient") or row["case"],
        layout="manifest",
        images={modality: folder / row[modality] for modality in MODALITIES if row.get(modality)},
        label=folder / row["label"] if row.get("label") else None,
        label_values=LABEL_VALUES[cast(LabelScheme, scheme)],
    )
