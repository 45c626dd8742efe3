"""The naming of BraTS 2017 to 2024, and what label values mean in each data set."""

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from bts_lightning.data.layouts.case import Case, DataSet, Fault
from bts_lightning.modalities import BACKGROUND, ENHANCING, MODALITIES, NECROSIS, OEDEMA, Modality

LabelScheme = Literal["brats2021", "brats2023", "brats2024", "decathlon"]

# Value in the file -> stored class, each as its data set documents it.
LABEL_VALUES: dict[LabelScheme, dict[int, int]] = {
    # 2017 to 2021: 1 NCR/NET, 2 ED, 4 ET; 3 has not been used since 2016.
    "brats2021": {0: BACKGROUND, 1: NECROSIS, 2: OEDEMA, 4: ENHANCING},
    # 2023: 1 NCR, 2 SNFH (oedema and infiltration), 3 ET.
    "brats2023": {0: BACKGROUND, 1: NECROSIS, 2: OEDEMA, 3: ENHANCING},
    # 2024, after treatment: 4 is the resection cavity. It belongs to none of WT, TC and ET there,
    # so as background it leaves all three regions as the challenge defines them.
    "brats2024": {0: BACKGROUND, 1: NECROSIS, 2: OEDEMA, 3: ENHANCING, 4: BACKGROUND},
    # Decathlon Task01 counts otherwise: 1 oedema, 2 non-enhancing, 3 enhancing.
    "decathlon": {0: BACKGROUND, 1: OEDEMA, 2: NECROSIS, 3: ENHANCING},
}

_CLASSIC = re.compile(
    r"(?P<case>(?P<release>Brats17|Brats18|BraTS19|BraTS20|BraTS2021)_.+)_(?P<what>t1ce|t1|t2|flair|seg)",
    re.IGNORECASE,
)
# Glioma and the tracks that label as glioma does. BraTS-PED means other things by 1 to 4.
_MODERN = re.compile(
    r"(?P<case>(?P<patient>BraTS-(GLI|SSA|MEN|MET)-\d+)-(?P<time>\d+))-(?P<what>t1n|t1c|t2w|t2f|seg)",
    re.IGNORECASE,
)
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
}
_YEARS = {"brats17": 2017, "brats18": 2018, "brats19": 2019, "brats20": 2020, "brats2021": 2021}
# BraTS20_Training_355 was released with its label under the name it had in its hospital.
_STRAY_LABEL = "w39_1998.09.19_segm"


def read_folders(root: Path) -> DataSet:
    """Group files named as in BraTS 2017 to 2024 into cases, wherever below the folder they lie."""
    parts: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    matches: dict[str, re.Match[str]] = {}
    strangers: list[Path] = []
    for stem, path in images_below(root):
        match = _CLASSIC.fullmatch(stem) or _MODERN.fullmatch(stem)
        if match is None:
            strangers.append(path)
            continue
        parts[match["case"]][_SUFFIXES[match["what"].lower()]].append(path)
        matches.setdefault(match["case"], match)
    ignored = [path for path in strangers if not _adopt(path, parts)]
    cases, faults = [], []
    for name, files in sorted(parts.items()):
        broken = _name_faults(name, files)
        faults += broken
        if not broken:
            cases.append(_brats_case(name, matches[name], files))
    return DataSet(root, tuple(cases), tuple(faults), tuple(ignored))


def images_below(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield name without ending and path of every NIfTI file, in one order on every machine."""
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        here = Path(folder)
        # A link to a folder above would never end.
        if (real := os.path.realpath(here)) in seen:
            folders.clear()
            continue
        seen.add(real)
        for name in sorted(folders):
            # Some unpackers leave `X_t1.nii/`, a folder around a file with an internal name.
            inner = _nifti_files(here / name) if _stem(name) is not None else []
            if len(inner) == 1 and (stem := _stem(name)) is not None:
                yield stem, inner[0]
                folders.remove(name)
        # Dot folders hold our cache, and `._` files are what macOS adds.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in _nifti_files(here, files):
            yield _stem(path.name) or path.name, path


def _nifti_files(folder: Path, names: list[str] | None = None) -> list[Path]:
    names = [path.name for path in folder.iterdir()] if names is None else names
    return [folder / n for n in sorted(names) if _stem(n) is not None and not n.startswith(".")]


def _stem(name: str) -> str | None:
    for ending in (".nii.gz", ".nii"):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return None


def _adopt(path: Path, parts: dict[str, dict[str, list[Path]]]) -> bool:
    """Give the stray label to the one case of its folder that has none."""
    if (_stem(path.name) or "").lower() != _STRAY_LABEL:
        return False
    for files in parts.values():
        beside = any(p.parent == path.parent for paths in files.values() for p in paths)
        if beside and "label" not in files:
            files["label"].append(path)
            return True
    return False


def _name_faults(name: str, files: dict[str, list[Path]]) -> list[Fault]:
    faults = [
        Fault(name, path, f"second file for {what}, beside {paths[0]}; keep one of them")
        for what, paths in files.items()
        for path in paths[1:]
    ]
    if not any(modality in files for modality in MODALITIES):
        faults.append(Fault(name, files["label"][0], "a label without any image"))
    return faults


def _brats_case(name: str, match: re.Match[str], files: dict[str, list[Path]]) -> Case:
    scheme: LabelScheme = "brats2021"
    if "release" in match.groupdict():
        year = _YEARS[match["release"].lower()]
        # Until 2019 the name ends with the number of the scan, `Brats18_TCIA01_131_1`.
        patient = re.sub(r"_\d+$", "", name) if year < 2020 else name
    else:
        # Post-treatment time points, the 2024 release, count from 100.
        year = 2024 if int(match["time"]) >= 100 else 2023
        patient = match["patient"]
        scheme = "brats2024" if year == 2024 else "brats2023"
    return Case(
        name=name,
        patient=patient,
        layout=f"BraTS {year}",
        images={modality: files[modality][0] for modality in MODALITIES if modality in files},
        label=files["label"][0] if "label" in files else None,
        label_values=LABEL_VALUES[scheme],
    )
