"""From a folder to its cases, whichever known data set lies there, found without a flag."""

from pathlib import Path

from bts_lightning.data.layouts.case import Case, DataSet, Fault
from bts_lightning.data.layouts.decathlon import read_decathlon
from bts_lightning.data.layouts.folders import read_folders
from bts_lightning.data.layouts.manifest import read_manifest
from bts_lightning.errors import DataError

__all__ = ["Case", "DataSet", "Fault", "find_cases"]


def find_cases(root: Path | str) -> DataSet:
    """Find every case below a folder, or of a CSV manifest, sorted by name.

    >>> find_cases("BraTS2020_TrainingData").layout  # doctest: +SKIP
    'BraTS 2020'
    """
    root = Path(root).expanduser()
    if not root.exists():
        raise DataError(f"{root} does not exist; give a data set folder or a CSV manifest")
    manifest = root if root.is_file() else root / "manifest.csv"
    if manifest.suffix == ".csv" and manifest.exists():
        found = read_manifest(manifest)
    elif root.is_file():
        raise DataError(f"{root} is a file; give a data set folder or a manifest ending in .csv")
    else:
        found = read_decathlon(root) or read_folders(root)
    if not found.cases and not found.faults:
        raise DataError(_nothing_found(found))
    return found


def _nothing_found(found: DataSet) -> str:
    seen = ", ".join(path.name for path in found.ignored[:3])
    what = (
        f"{len(found.ignored)} NIfTI files, none named as in BraTS ({seen})"
        if found.ignored
        else "no NIfTI file"
    )
    return (
        f"{found.root} holds {what}; known are BraTS 2017 to 2024, Decathlon Task01 and a "
        "manifest.csv with the columns case, t1, t1c, t2, flair, label (docs/data.md)"
    )
