"""The folder of an evaluation: its protocol, the rows of each case, and what is made of them."""

import json
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from bts_lightning.errors import UserError
from bts_lightning.files import write_whole
from bts_lightning.modalities import Subset, subset_name
from bts_lightning.report.screen import Screen
from bts_lightning.report.slices import keep_slices
from bts_lightning.report.table import COLUMNS, REGION_NAMES, VALUES, EvaluationTable, read_rows
from bts_lightning.report.write import choose_cases, write_report

# What may differ between the start of an evaluation and its continuation.
_MAY_DIFFER = ("commit", "versions", "run", "experiment", "created", "cases", "unscored")


def open_folder(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Start a folder of rows, or continue one whose rows were made alike; return its facts."""
    file = folder / "protocol.json"
    if not file.exists():
        facts = facts | {"created": time.strftime("%FT%T")}
        _write_facts(folder, facts)
        return facts
    before: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    changed = sorted(
        key
        for key in facts
        if key not in _MAY_DIFFER and json.dumps(before.get(key)) != json.dumps(facts[key])
    )
    if changed:
        raise UserError(
            f"{folder} holds an evaluation with another {', '.join(changed)}; give this one a "
            "name of its own with --name, or delete that folder"
        )
    return before


def has_rows(folder: Path, case: str) -> bool:
    """Say whether a case is finished, in all columns that a table has today."""
    file = _rows_file(folder, case)
    # Rows from before a metric was added are made again, or the table would have gaps.
    return file.exists() and file.read_text().partition("\n")[0] == ",".join(COLUMNS)


def write_rows(
    folder: Path, case: str, subsets: Sequence[Subset], scores: Mapping[str, np.ndarray]
) -> None:
    """Write the rows of a case, whole or not at all; without a subset there is none."""
    rows = [
        {"case": case, "subset": subset_name(subset), "region": region}
        | {column: float(scores[column][s, r]) for column in VALUES}
        for s, subset in enumerate(subsets)
        for r, region in enumerate(REGION_NAMES)
    ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    write_whole(_rows_file(folder, case), table.to_csv(index=False))


def finish_folder(
    folder: Path,
    facts: Mapping[str, Any],
    cases: Sequence[str],
    labelled: Collection[str],
    console: Screen,
) -> EvaluationTable:
    """Join the rows of all cases, each exactly once, into table, summary and report."""
    missing = [name for name in cases if not _rows_file(folder, name).exists()]
    if missing:
        raise UserError(
            f"{len(missing)} cases were not evaluated, {missing[0]} first; run it again"
        )
    tables = [read_rows(_rows_file(folder, name)) for name in cases]
    empty = [name for name, table in zip(cases, tables, strict=True) if table.empty]
    unscored = [name for name in empty if name not in labelled]
    unshown = [name for name in empty if name in labelled]
    if unshown:
        console.print(f"these cases have none of the subsets: {', '.join(unshown)}", style="yellow")
    if unscored:
        console.print(
            f"not scored, because there is no label: {', '.join(unscored)}; "
            f"their label maps are in {folder / 'predictions'}",
            style="yellow",
        )
    scored = [table for table in tables if not table.empty]
    if not scored:
        raise UserError(
            f"none of the {len(cases)} cases has a label and one of the subsets, so there is "
            "nothing to score"
        )
    rows = pd.concat(scored, ignore_index=True)
    table = EvaluationTable.from_rows(rows, str(folder))
    facts = {**facts, "cases": len(scored), "unscored": unscored}
    _write_facts(folder, facts)
    write_whole(folder / "cases.csv", rows.to_csv(index=False))
    write_report(folder, table, facts)
    # About a megabyte a case; the report shows a dozen.
    keep_slices(folder, choose_cases(table))
    return table


def _write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    write_whole(folder / "protocol.json", json.dumps(facts, indent=2) + "\n")


def _rows_file(folder: Path, case: str) -> Path:
    # Quoted, because a manifest may call a case `a/b`.
    return folder / "rows" / f"{quote(case, safe='')}.csv"
