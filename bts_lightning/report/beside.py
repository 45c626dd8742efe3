"""What an evaluation may write beside its table: a file a case, joined into one for all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from bts_lightning.errors import DataError
from bts_lightning.modalities import MODALITIES
from bts_lightning.report.table import KEYS, read_rows

# The fact of the protocol that asks for it names it, and its files; these are its columns.
BESIDE = {
    "lesions": (*KEYS, "mm3", "counts", "found", "dice", "hd95"),
    "calibration": (*KEYS, "area", "bin", "voxels", "probability", "truth"),
    # Expert 0 is none; a modality a column.
    "importance": (*KEYS, "kind", "level", "expert", *MODALITIES),
}
TEXT = (*KEYS, "area", "kind")


def asked_for(facts: Mapping[str, Any]) -> list[str]:
    """Name what the protocol wants beside the table."""
    return [kind for kind in BESIDE if facts.get(kind)]


def read_beside(file: Path, kind: str, skip: int = 0) -> pd.DataFrame:
    """Read it, of an evaluation, or of a case after its seal."""
    table = read_rows(file, skip=skip)
    absent = [column for column in BESIDE[kind] if column not in table]
    if absent:
        raise DataError(f"{file}: no column {', '.join(absent)}; delete it and evaluate again")
    try:
        table[[column for column in BESIDE[kind] if column not in TEXT]].astype(float)
    except ValueError as fault:
        raise DataError(f"{file}: {fault}; delete it and evaluate again") from fault
    return table


def read_all(folder: Path, facts: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Read all that stands beside the table of an evaluation; a file may be taken away."""
    files = {kind: folder / f"{kind}.csv" for kind in asked_for(facts)}
    return {kind: read_beside(file, kind) for kind, file in files.items() if file.is_file()}
