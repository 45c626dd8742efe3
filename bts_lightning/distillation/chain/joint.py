"""One evaluation table of several students, in which each subset is scored by its own."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from bts_lightning.errors import UserError
from bts_lightning.files import write_whole
from bts_lightning.report.facts import read_protocol
from bts_lightning.report.table import EvaluationTable, read_rows
from bts_lightning.report.write import write_report

# These tell one student from another; all else must be the same for a table to make sense.
_OWN = ("run", "experiment", "checkpoint_sha256", "subsets", "created", "cases", "unscored")
_MAY_DIFFER = ("commit", "versions")


def join_students(students: Mapping[str, Path], folder: Path, part: str) -> EvaluationTable:
    """Write the evaluation of an arm from those of its students, subset by subset.

    Args:
        students: the run of each subset.
        folder: of the arm; the table goes below, so that `bts compare` takes it for a run.
        part: of the split.
    """
    facts = {name: read_protocol(run / "evaluation" / part) for name, run in students.items()}
    _check_alike(facts)
    tables = []
    for subset, run in students.items():
        rows = read_rows(run / "evaluation" / part / "cases.csv")
        tables.append(rows[rows["subset"] == subset])
    table = EvaluationTable.from_rows(pd.concat(tables, ignore_index=True), str(folder))
    out = folder / "evaluation" / part
    first = next(iter(facts.values()))
    common = {key: value for key, value in first.items() if key not in _OWN}
    own = {
        "run": str(folder),
        "experiment": f"{folder.parent.name}/{folder.name}",
        "subsets": list(students),
        "cases": len(table.cases),
        "unscored": first.get("unscored", []),
        "students": {name: fact["checkpoint_sha256"] for name, fact in facts.items()},
    }
    write_whole(out / "protocol.json", json.dumps(common | own, indent=2) + "\n")
    write_whole(out / "cases.csv", table.rows.to_csv(index=False))
    write_report(out, table, common | own, slices=[])
    return table


def _check_alike(facts: Mapping[str, Mapping[str, Any]]) -> None:
    (reference, first), *others = facts.items()
    for name, other in others:
        keys = {*first, *other} - {*_OWN, *_MAY_DIFFER}
        changed = sorted(key for key in keys if first.get(key) != other.get(key))
        if changed:
            raise UserError(
                f"the students for {reference} and {name} were evaluated with another "
                f"{', '.join(changed)}; delete the evaluation folder of one and run it again"
            )
