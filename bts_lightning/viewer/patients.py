"""Who can be looked at: the cases of a run's split, or one patient from files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bts_lightning import runs
from bts_lightning.data.cache.prepare import case_of, load_cases
from bts_lightning.data.cache.reading import BrokenCaseError
from bts_lightning.data.cache.ready import ReadyCase
from bts_lightning.data.splits import Part
from bts_lightning.errors import DataError, UserError, did_you_mean
from bts_lightning.inference.protocol import without
from bts_lightning.modalities import COMPLETE, Modality, subset_name
from bts_lightning.report.table import EvaluationTable
from bts_lightning.runs.seen import warnings
from bts_lightning.viewer.maps import MapMaker


@dataclass(frozen=True)
class Patient:
    """A case as each run wants it prepared.

    Attributes:
        dice: of the first run's evaluation, if it has scored the case: mean over regions with all
            four modalities and without T1c, in percent.
    """

    name: str
    views: tuple[ReadyCase, ...]
    dice: Mapping[str, float]


def patients_of(makers: Sequence[MapMaker], part: Part) -> list[Patient]:
    """Give the cases of a part of the first run's split, for all runs."""
    first = makers[0]
    data: Any = first.ensemble.data[0]
    data.prepare_data()
    data.setup("test")
    names = getattr(data.split, part)
    if not names:
        raise UserError(f"the {part} part of split {data.split.name} has no case; choose another")
    runs.check_split(first.run, data, [part])
    own = [maker.ensemble.prepared(data)[0] for maker in makers]
    scores = _scores(first.run / "evaluation" / part)
    return [
        Patient(name, tuple(cases[name] for cases in own), scores.get(name, {})) for name in names
    ]


def seen_before(makers: Sequence[MapMaker], part: Part) -> list[str]:
    """Say which runs have been trained on, or chosen by, cases that are shown."""
    data: Any = makers[0].ensemble.data[0]
    said = []
    for maker in makers:
        known = sorted(runs.seen_cases(maker.run, data, part))
        if known:
            said.append(
                f"{maker.run} has trained on, or was chosen by, {len(known)} of these cases, "
                f"{known[0]} first: what it says of them is too good"
            )
        cases = [(name, data.cases[name].patient) for name in getattr(data.split, part)]
        said += [] if known else warnings(maker.run, cases, part)
    return said


def patient_of(makers: Sequence[MapMaker], images: Mapping[Modality, Path]) -> Patient:
    """Read one patient from a file a modality."""
    try:
        case = case_of(images, scheme=makers[0].member.loss.scheme_name)
        views = load_cases(case, [maker.recipe for maker in makers])
    except BrokenCaseError as error:
        raise DataError("; ".join(f"{f.file}: {f.reason}" for f in error.faults)) from error
    return Patient(case.name, tuple(views), {})


def place_of(case: str | None, patients: Sequence[Patient]) -> int:
    """Find a case by its name; the first one without."""
    names = [patient.name for patient in patients]
    if case is None:
        return 0
    if case not in names:
        raise UserError(f"there is no case {case!r} here; {did_you_mean(case, names)}")
    return names.index(case)


def _scores(folder: Path) -> dict[str, dict[str, float]]:
    if not (folder / "cases.csv").is_file():
        return {}
    table = EvaluationTable.read(folder)
    dice = 100 * table.grid("dice").mean(axis=2)
    chosen = {"all": subset_name(COMPLETE), "without_t1c": subset_name(without("t1c"))}
    columns = {key: table.subsets.index(n) for key, n in chosen.items() if n in table.subsets}
    return {
        case: {
            k: round(float(dice[i, c]), 1) for k, c in columns.items() if np.isfinite(dice[i, c])
        }
        for i, case in enumerate(table.cases)
    }
