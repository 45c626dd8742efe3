"""The folder of an evaluation: its protocol, the rows of each case, and what is made of them."""

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from bts_lightning.errors import DataError, UserError
from bts_lightning.files import checksum, content, write_whole
from bts_lightning.modalities import Subset, subset_name
from bts_lightning.report.beside import BESIDE, asked_for, read_beside
from bts_lightning.report.facts import read_protocol, write_protocol
from bts_lightning.report.screen import Screen
from bts_lightning.report.slices import keep_slices
from bts_lightning.report.table import KEYS, PATIENT, VALUES, EvaluationTable, read_rows
from bts_lightning.report.write import choose_cases, write_report

# What may differ between the start of an evaluation and its continuation.
_MAY_DIFFER = (
    *("commit", "versions", "run", "experiment", "members"),
    *("created", "cases", "unscored"),
)


def making(facts: Mapping[str, Any]) -> str:
    """Give a mark of how rows are made, the same as long as they may stand in one table."""
    # Rows from before a column was added are made again, or the table would have gaps.
    return checksum(
        [PATIENT, VALUES, sorted((k, v) for k, v in facts.items() if k not in _MAY_DIFFER)]
    )


def open_folder(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Start a folder of rows, or continue one whose rows were made alike; return its facts."""
    try:
        before = read_protocol(folder)
    except DataError:
        # Not there, or damaged: the rows say by themselves whether they were made alike.
        facts = facts | {"created": time.strftime("%FT%T")}
        write_protocol(folder, facts)
        return facts
    changed = sorted(
        key
        for key in {**before, **facts}
        if key not in _MAY_DIFFER and checksum(before.get(key)) != checksum(facts.get(key))
    )
    if changed:
        raise UserError(
            f"{folder} holds an evaluation with another {', '.join(changed)}; give this one a "
            "name of its own with --name, or delete that folder"
        )
    return before


def has_rows(folder: Path, case: str, made: str, beside: Sequence[str]) -> bool:
    """Say whether a case is finished: its rows are as they were written, and made alike."""
    return all(_is_sealed(_file(folder, kind, case), case, made) for kind in ("rows", *beside))


def write_rows(
    folder: Path,
    case: str,
    patient: str,
    subsets: Sequence[Subset],
    regions: Iterable[str],
    scores: Mapping[str, np.ndarray],
    made: str,
) -> None:
    """Write the rows of a case, whole or not at all; without a subset there is none."""
    rows = [
        {"case": case, PATIENT: patient, "subset": subset_name(subset), "region": region}
        | {column: float(values[s, r]) for column, values in scores.items()}
        for s, subset in enumerate(subsets)
        for r, region in enumerate(regions)
    ]
    table = pd.DataFrame(rows, columns=["case", PATIENT, *KEYS[1:], *scores])
    _write_sealed(_file(folder, "rows", case), case, table, made)


def write_beside(
    folder: Path, kind: str, case: str, rows: Sequence[Mapping[str, object]], made: str
) -> None:
    """Write what a case has beside its rows of the table, such as its lesions."""
    _write_sealed(_file(folder, kind, case), case, pd.DataFrame(rows, columns=BESIDE[kind]), made)


def _write_sealed(file: Path, case: str, rows: pd.DataFrame, made: str) -> None:
    text = rows.to_csv(index=False).encode()
    write_whole(file, _seal(case, text, made) + b"\n" + text)


def _is_sealed(file: Path, case: str, made: str) -> bool:
    try:
        seal, _, rows = content(file).partition(b"\n")
    except OSError:
        return False
    return seal == _seal(case, rows, made)


def _seal(case: str, rows: bytes, made: str) -> bytes:
    """Give the first line of a file of rows, another one if the rows or their making differ."""
    return f"# {checksum([case, made, rows.hex()])}".encode()


def finish_folder(
    folder: Path,
    facts: Mapping[str, Any],
    made: str,
    cases: Sequence[str],
    labelled: Collection[str],
    console: Screen,
) -> EvaluationTable:
    """Join the rows of all cases, each exactly once, into table, summary and report."""
    beside = asked_for(facts)
    missing = [name for name in cases if not has_rows(folder, name, made, beside)]
    if missing:
        raise UserError(
            f"{len(missing)} cases were not evaluated, {missing[0]} first; run it again"
        )
    tables = [read_rows(_file(folder, "rows", name), skip=1) for name in cases]
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
    text = rows.to_csv(index=False)
    told = {
        kind: pd.concat(
            [read_beside(_file(folder, kind, name), kind, skip=1) for name in table.cases],
            ignore_index=True,
        ).to_csv(index=False)
        for kind in beside
    }
    write_protocol(folder, facts, {"cases": text, **told})
    for kind, joined in told.items():
        write_whole(folder / f"{kind}.csv", joined)
    write_report(folder, table, facts)
    # About a megabyte a case; the report shows a dozen.
    keep_slices(folder, choose_cases(table))
    # The last, because a study takes an evaluation with it for finished.
    write_whole(folder / "cases.csv", text)
    return table


def _file(folder: Path, kind: str, case: str) -> Path:
    # Quoted, because a manifest may call a case `a/b`.
    return folder / kind / f"{quote(case, safe='')}.csv"
