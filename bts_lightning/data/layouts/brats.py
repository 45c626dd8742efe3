"""The naming of BraTS 2017 to 2024."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from bts_lightning.data.layouts.case import (
    LABEL_VALUES,
    Case,
    Fault,
    Image,
    Numbering,
    second_files,
)
from bts_lightning.modalities import MODALITIES, Modality

KNOWN = "BraTS 2017 to 2024"

_CLASSIC = re.compile(
    r"(?P<case>(?P<release>Brats17|Brats18|BraTS19|BraTS20|BraTS2021)_.+)_(?P<what>t1ce|t1|t2|flair|seg)",
    re.IGNORECASE,
)
_MODERN = re.compile(
    r"(?P<case>(?P<patient>BraTS-(?P<track>GLI|SSA|MEN|MET|PED)-\d+)-(?P<time>\d+))"
    r"-(?P<what>t1n|t1c|t2w|t2f|seg)",
    re.IGNORECASE,
)
_RADIOTHERAPY = re.compile(
    r"(?P<case>(?P<patient>BraTS-(?P<track>MEN-RT)-\d+)-(?P<time>\d+))_(?P<what>t1c|gtv)",
    re.IGNORECASE,
)
_NAMES = (_CLASSIC, _MODERN, _RADIOTHERAPY)
_SUFFIXES: dict[str, Modality | Literal["label"]] = {
    "t1": "t1",
    "t1ce": "t1c",
    "t2": "t2",
    "flair": "flair",
    "t1n": "t1",
    "t1c": "t1c",
    "t2w": "t2",
    "t2f": "flair",
    "seg": "label",
    "gtv": "label",
}
# Those whose labels mean other things than a glioma's.
_TRACKS: dict[str, Numbering] = {"PED": "ped", "MEN-RT": "men_rt"}
_YEARS = {"brats17": 2017, "brats18": 2018, "brats19": 2019, "brats20": 2020, "brats2021": 2021}
# BraTS20_Training_355 was released with its label under the name it had in its hospital.
_STRAY_LABEL = "w39_1998.09.19_segm"


def read(images: Sequence[Image]) -> Iterator[Case | Fault]:
    """Group files named as in BraTS 2017 to 2024 into cases, wherever below the folder they lie."""
    parts: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    matches: dict[str, re.Match[str]] = {}
    for stem, path in images:
        if match := next(filter(None, (name.fullmatch(stem) for name in _NAMES)), None):
            parts[match["case"]][_SUFFIXES[match["what"].lower()]].append(path)
            matches.setdefault(match["case"], match)
    for stem, path in images:
        if stem.lower() == _STRAY_LABEL:
            _adopt(path, parts)
    for name, files in parts.items():
        broken = _name_faults(name, files)
        yield from broken
        if not broken:
            yield _brats_case(name, matches[name], files)


def _adopt(path: Path, parts: dict[str, dict[str, list[Path]]]) -> None:
    """Give the stray label to the one case of its folder that has none."""
    for files in parts.values():
        beside = any(p.parent == path.parent for paths in files.values() for p in paths)
        if beside and "label" not in files:
            files["label"].append(path)
            return


def _name_faults(name: str, files: dict[str, list[Path]]) -> list[Fault]:
    faults = second_files(name, files)
    if not any(modality in files for modality in MODALITIES):
        faults.append(Fault(name, files["label"][0], "a label without any image"))
    return faults


def _brats_case(name: str, match: re.Match[str], files: dict[str, list[Path]]) -> Case:
    numbering: Numbering = "brats2021"
    if "release" in match.groupdict():
        year = _YEARS[match["release"].lower()]
        # Until 2019 the name ends with the number of the scan, `Brats18_TCIA01_131_1`.
        patient = re.sub(r"_\d+$", "", name) if year < 2020 else name
    else:
        # Post-treatment time points, the 2024 release, count from 100.
        year = 2024 if int(match["time"]) >= 100 else 2023
        patient = match["patient"]
        numbering = "brats2024" if year == 2024 else "brats2023"
        if track := _TRACKS.get(match["track"].upper()):
            year, numbering = 2024, track
    return Case(
        name=name,
        patient=patient,
        layout=f"BraTS {year}",
        images={modality: files[modality][0] for modality in MODALITIES if modality in files},
        label=files["label"][0] if "label" in files else None,
        label_values=LABEL_VALUES[numbering],
    )
