"""The layout of BIDS: `sub-01/ses-02/anat/sub-01_ses-02_ce-gadolinium_T1w.nii.gz`, `…_dseg.nii.gz`.

Names as in https://bids-specification.readthedocs.io, anatomical images and derivatives.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from bts_lightning.data.layouts.case import LABEL_VALUES, Case, Fault, Image, second_files
from bts_lightning.modalities import MODALITIES

KNOWN = "BIDS"

# Subject, session, pairs such as `space-SRI24` in any number, then the suffix.
_NAME = re.compile(
    r"(?P<case>(?P<patient>sub-[a-zA-Z0-9+]+)(_ses-[a-zA-Z0-9+]+)?)"
    r"(?P<pairs>(_[a-zA-Z0-9]+-[a-zA-Z0-9+]+)*)_(?P<suffix>[a-zA-Z0-9]+)"
)
# BIDS has T1w, T2w, FLAIR and dseg; the other names are what converters of BraTS write.
_SUFFIXES = {
    "T1w": "t1",
    **dict.fromkeys(("T1c", "T1ce", "T1gd", "T1Gd", "T1wCE"), "t1c"),
    "T2w": "t2",
    "FLAIR": "flair",
    **dict.fromkeys(("dseg", "seg"), "label"),
}


def read(images: Sequence[Image]) -> Iterator[Case | Fault]:
    """Group a subject's files of one session into a case, those below `derivatives/` with them."""
    cases: dict[tuple[Path, str, str], dict[str, list[Path]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for stem, path in images:
        if (name := _NAME.fullmatch(stem)) and (part := _part(name["suffix"], name["pairs"])):
            top = _top(path, name["patient"])
            cases[top, name["patient"], name["case"]][part].append(path)
    for (_, patient, case), files in cases.items():
        if broken := second_files(case, files):
            yield from broken
            continue
        yield Case(
            name=case,
            patient=patient,
            layout=KNOWN,
            images={m: files[m][0] for m in MODALITIES if m in files},
            label=files["label"][0] if "label" in files else None,
            # BIDS does not say what the values of a tumour are. 3 is ET in BraTS since 2023; a 4
            # is refused, for it was ET until 2021 and is a cavity since 2024.
            label_values=LABEL_VALUES["brats2023"],
        )


def _part(suffix: str, pairs: str) -> str | None:
    """Tell which part of a case a file is; None is a file that is not ours."""
    part = _SUFFIXES.get(suffix)
    if "_ce-" in pairs and part != "label":
        # T1w with contrast agent is T1c. A T2w or FLAIR with it is none of the four modalities.
        return "t1c" if part in ("t1", "t1c") else None
    return part


def _top(path: Path, patient: str) -> Path:
    """Find the folder of the data set, because sub-01 of another data set is another patient."""
    for folder in reversed(path.parents):
        if folder.name in (patient, "derivatives", "rawdata"):
            return folder.parent
    return path.parent
