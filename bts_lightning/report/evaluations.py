"""Evaluations to compare, held to the same cases and protocol."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bts_lightning.errors import UserError
from bts_lightning.report.facts import as_text, read_protocol
from bts_lightning.report.table import EvaluationTable, evaluation_folder

# What two comparable evaluations must share, and how it is called in the refusal.
POLICIES = {
    "scheme": "schemes of labels",
    "hd95": "definitions of HD95",
    "empty": "policies for empty regions",
}
# Where both score lesions, also these.
LESION_POLICIES = {"lesions": "policies for lesions", "lesion_task": "tasks for lesions"}
# Volumes are written with a few digits; labels that differ do so by whole voxels, mostly 0.001 ml.
_SAME_ML = 5e-4


@dataclass(frozen=True)
class Evaluation:
    """Hold a run's table and protocol under the name that the comparison prints."""

    name: str
    folder: Path
    table: EvaluationTable
    protocol: dict[str, Any]


def open_evaluations(runs: Sequence[Path]) -> list[Evaluation]:
    """Read the newest evaluation of each run, or the evaluation folders that are given."""
    if len(runs) < 2:
        raise UserError(
            f"compare got {len(runs)} run, it needs two or more: the reference, then the others"
        )
    folders = [evaluation_folder(Path(run)) for run in runs]
    for i, folder in enumerate(folders):
        if folder.resolve() in (earlier.resolve() for earlier in folders[:i]):
            raise UserError(f"{folder}: given twice; compare a run with another one")
    names = [_name(folder, 2) for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    return [
        Evaluation(name, folder, EvaluationTable.read(folder), read_protocol(folder))
        for name, folder in zip(names, folders, strict=True)
    ]


def check_comparable(first: Evaluation, second: Evaluation) -> None:
    """Refuse a pair whose numbers do not answer the same question."""
    who = f"{first.name} and {second.name}"
    advice = "evaluate both alike, or choose evaluations that are, as RUN/evaluation/NAME"
    splits = [_split(evaluation.protocol) for evaluation in (first, second)]
    if splits[0] != splits[1]:
        told = " and ".join(as_text(e.protocol.get("split")) for e in (first, second))
        raise UserError(f"{who} were evaluated on different splits: {told}; {advice}")
    both = all(evaluation.protocol.get("lesions") for evaluation in (first, second))
    for key, what in (POLICIES | (LESION_POLICIES if both else {})).items():
        values = [evaluation.protocol.get(key) for evaluation in (first, second)]
        if values[0] != values[1]:
            told = " and ".join(as_text(value) for value in values)
            raise UserError(f"{who} have different {what}: {told}; {advice}")
    _check_cases(who, first.table, second.table)
    _check_labels(who, first.table, second.table)


def _check_cases(who: str, first: EvaluationTable, second: EvaluationTable) -> None:
    only = [sorted(set(a.cases) - set(b.cases)) for a, b in ((first, second), (second, first))]
    if any(only):
        example = (only[0] or only[1])[0]
        raise UserError(
            f"{who} were scored on different cases: {len(only[0])} only in the first, "
            f"{len(only[1])} only in the second, such as {example!r}; evaluate both on the same"
        )
    if not set(first.subsets) & set(second.subsets):
        raise UserError(
            f"{who} share no subset: {', '.join(first.subsets)} against "
            f"{', '.join(second.subsets)}; evaluate one of them with subsets of the other"
        )


def _check_labels(who: str, first: EvaluationTable, second: EvaluationTable) -> None:
    """Hold the volumes of the truth against each other: equal names may hide other labels."""
    volumes = [_true_ml(table) for table in (first, second)]
    differing = np.argwhere(np.abs(volumes[0] - volumes[1]) > _SAME_ML)
    if len(differing):
        case, region = differing[0]
        told = " and ".join(f"{v[case, region]:.3f} ml" for v in volumes)
        raise UserError(
            f"{who} were scored against different labels: {first.regions[region]} of case "
            f"{first.cases[case]!r} has {told}; evaluate both on the same data"
        )


def _true_ml(table: EvaluationTable) -> np.ndarray:
    grid = table.grid("true_ml")  # case × subset × region, the same in every subset
    return np.where(np.isfinite(grid), grid, -1.0).max(axis=1)


def _name(folder: Path, parts: int) -> str:
    """Name a run by experiment and time stamp, the last parts of its path."""
    folder = folder.resolve()
    run = folder.parent.parent if folder.parent.name == "evaluation" else folder
    return "/".join(run.parts[-parts:]) if len(run.parts) > parts else str(run)


def _split(protocol: dict[str, Any]) -> object:
    split = protocol.get("split")
    # The fingerprint decides: two names may be given to the same lists of cases.
    if isinstance(split, dict) and "fingerprint" in split:
        return split["fingerprint"], split.get("part")
    return split
