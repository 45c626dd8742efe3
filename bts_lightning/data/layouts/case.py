"""What lies on disk before any voxel is read: cases, data sets, and what is wrong with them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from bts_lightning.errors import DataError
from bts_lightning.modalities import (
    BACKGROUND,
    CAVITY,
    CYST,
    ENHANCING,
    MODALITIES,
    NECROSIS,
    NON_ENHANCING,
    OEDEMA,
    SCHEMES,
    TARGET,
    TISSUES,
    Modality,
    Subset,
)

Numbering = Literal[
    "brats2015", "brats2021", "brats2023", "brats2024", "ped", "men_rt", "decathlon"
]

# Value in the file -> tissue, each as its data set documents it.
LABEL_VALUES: dict[Numbering, dict[int, int]] = {
    # Until 2016; from a manifest, for those files are no NIfTI.
    "brats2015": {0: BACKGROUND, 1: NECROSIS, 2: OEDEMA, 3: NON_ENHANCING, 4: ENHANCING},
    # 2017 to 2021: 1 NCR/NET, 2 ED, 4 ET; 3 has not been used since 2016.
    "brats2021": {0: BACKGROUND, 1: NECROSIS, 2: OEDEMA, 4: ENHANCING},
    # 2023: 1 NCR, 2 SNFH (oedema and infiltration), 3 ET.
    "brats2023": {0: BACKGROUND, 1: NECROSIS, 2: OEDEMA, 3: ENHANCING},
    # 2024, after treatment: 4 is the resection cavity.
    "brats2024": {0: BACKGROUND, 1: NECROSIS, 2: OEDEMA, 3: ENHANCING, 4: CAVITY},
    # 2024, children. Those of 2023 have the same names, and the values of brats2023.
    "ped": {0: BACKGROUND, 1: ENHANCING, 2: NECROSIS, 3: CYST, 4: OEDEMA},
    # 2024, before radiotherapy.
    "men_rt": {0: BACKGROUND, 1: TARGET},
    # Decathlon Task01 counts otherwise: 1 oedema, 2 non-enhancing, 3 enhancing.
    "decathlon": {0: BACKGROUND, 1: OEDEMA, 2: NECROSIS, 3: ENHANCING},
}


class Image(NamedTuple):
    """A NIfTI file as a walk through a folder finds it: its name without the ending, its path."""

    stem: str
    path: Path


@dataclass(frozen=True)
class Case:
    """One patient time point as it lies on disk, before any voxel is read.

    Attributes:
        label_values: value in the file -> tissue (`modalities.py`).
        channels: for 4-D files, the channel of each modality; empty for one file a modality.
    """

    name: str
    patient: str
    layout: str
    images: dict[Modality, Path]
    label: Path | None
    label_values: dict[int, int]
    channels: dict[Modality, int] = field(default_factory=dict)

    @property
    def available(self) -> Subset:
        """Tell which modalities were acquired."""
        t1, t1c, t2, flair = (modality in self.images for modality in MODALITIES)
        return t1, t1c, t2, flair

    @property
    def is_labelled(self) -> bool:
        """Say whether there is a label map."""
        return self.label is not None

    @property
    def files(self) -> tuple[Path, ...]:
        """List each file once, images in modality order and the label last."""
        paths = [self.images[modality] for modality in MODALITIES if modality in self.images]
        return tuple(dict.fromkeys([*paths, *([self.label] if self.label else [])]))

    def stored_values(self, scheme: str) -> dict[int, int]:
        """Give value in the file -> stored class; refuse a case whose labels mean other things."""
        stored = SCHEMES[scheme].stored
        foreign = [tissue for tissue in self.label_values.values() if tissue not in stored]
        if foreign:
            tissues = set(self.label_values.values())
            fitting = [name for name, one in SCHEMES.items() if tissues <= one.stored.keys()]
            raise DataError(
                f"{self.name}: labels of {self.layout} know {TISSUES[foreign[0]]}, which "
                f"data.scheme={scheme} does not; a data set is read by one scheme: keep others in "
                f"a folder of their own, or set data.scheme={' or '.join(fitting)}"
            )
        return {in_file: stored[tissue] for in_file, tissue in self.label_values.items()}


@dataclass(frozen=True)
class Fault:
    """Why a case cannot be used, and which file is to blame.

    Attributes:
        others: more files of the case, which are no strangers because it is broken.
    """

    case: str
    file: Path
    reason: str
    others: tuple[Path, ...] = ()

    def __str__(self) -> str:
        return f"{self.case}: {self.file}: {self.reason}"


def second_files(case: str, files: Mapping[str, Sequence[Path]]) -> list[Fault]:
    """Blame each file that is the second one for a modality, or for the label, of a case.

    Args:
        files: the files that were found for each modality, and for `label`.
    """
    known = tuple(path for paths in files.values() for path in paths)
    return [
        Fault(case, path, f"second file for {part}, beside {paths[0]}; keep one of them", known)
        for part, paths in files.items()
        for path in paths[1:]
    ]


@dataclass(frozen=True)
class DataSet:
    """What a folder holds: cases, faults that names alone show, files that nobody claimed."""

    root: Path
    cases: tuple[Case, ...]
    faults: tuple[Fault, ...] = ()
    ignored: tuple[Path, ...] = ()

    @property
    def folder(self) -> Path:
        """Give the folder that holds it, also when the root is a manifest."""
        return self.root if self.root.is_dir() else self.root.parent

    @property
    def layout(self) -> str:
        """Name the layouts, `BraTS 2020` or `BraTS 2018 + BraTS 2021`."""
        return " + ".join(sorted({case.layout for case in self.cases})) or "unknown"
