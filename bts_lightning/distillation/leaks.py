"""Refuse to learn from a run that saw a patient whom the learner is chosen by or scored on."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bts_lightning.data.splits import PARTS, Split
from bts_lightning.errors import ConfigError
from bts_lightning.runs.seen import Seen


def refuse_leaks(run: Path, data: Any, *, who: str, learner: str) -> None:
    """Compare the split of a run with that of a data module, patient by patient."""
    patients = {name: case.patient for name, case in data.cases.items()}
    seen, chosen, left = _lists(run, patients, who)
    if not (seen | chosen | left) & set(patients.values()):
        raise ConfigError(
            f"{who} {run} knows none of the cases in {data.root}, so nobody can tell whether it "
            "was trained on test cases; train it on this data set"
        )
    for part, did, theirs in (
        ("test", "trained on", seen),
        ("test", "was chosen by its score on", chosen),
        ("val", "trained on", seen),
    ):
        cases = getattr(data.split, part)
        leaked = [name for name in cases if patients.get(name, name) in theirs]
        if leaked:
            raise ConfigError(
                f"{who} {run} {did} {len(leaked)} of {learner}'s {len(cases)} {part} cases, such "
                f"as {leaked[0]}; give {learner} the {who}'s split, "
                f"data.split={run / 'split.json'}"
            )


def _lists(run: Path, patients: dict[str, str], who: str) -> list[set[str]]:
    """Give the patients of each part of the run's split, as far as the data have them."""
    if (digests := Seen.load(run)) is None:
        if not (run / "split.json").exists():
            raise ConfigError(
                f"{who} {run} has no split.json, as one that was imported, so nobody can tell what "
                "it was trained on; import it with the lists of its authors, as "
                "data.split=split.json"
            )
        split = Split.load(run / "split.json")
        return [set(_patients(getattr(split, part), patients)) for part in PARTS]
    its = {patient: digests.part_of(name, patient) for name, patient in patients.items()}
    return [{patient for patient, part in its.items() if part == one} for one in PARTS]


def _patients(cases: Iterable[str], known: dict[str, str]) -> list[str]:
    """Tell whom cases show; one that is not there may be another scan of a patient who is."""
    there = set(known.values())
    # `BraTS-GLI-00005-101` and `Brats18_TCIA01_131_1` are a patient's name and a number.
    names = ((case, re.sub(r"[-_]\d+$", "", case)) for case in cases)
    return [known.get(case, stem if stem in there else case) for case, stem in names]
