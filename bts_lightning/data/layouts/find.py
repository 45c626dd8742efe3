"""From a folder to its cases, whichever known data sets lie there, found without a flag.

A layout is a module of this folder with `KNOWN`, what it is called, and `read(images)`, which
yields the cases and the faults that it sees in the names of files. Nothing registers it.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Protocol, cast

from bts_lightning.data.layouts.case import Case, DataSet, Fault, Image
from bts_lightning.data.layouts.manifest import read_manifest
from bts_lightning.errors import DataError


class Layout(Protocol):
    """What a module of this folder has that reads a data set."""

    KNOWN: str

    def read(self, images: Sequence[Image]) -> Iterable[Case | Fault]:
        """Claim images of cases, and say what names alone show to be wrong."""


def find_cases(root: Path | str) -> DataSet:
    """Find every case below a folder, or of a CSV manifest, sorted by name.

    >>> find_cases("BraTS2020_TrainingData").layout  # doctest: +SKIP
    'BraTS 2020'
    """
    root = whole_path(root)
    if not root.exists():
        raise DataError(f"{root} does not exist; give a data set folder or a CSV manifest")
    manifest = root / "manifest.csv" if root.is_dir() else root
    if manifest.suffix == ".csv" and manifest.exists():
        # It is the user's word on what lies here, so nothing else is looked at.
        return _checked(root, read_manifest(manifest), ())
    if not root.is_dir():
        raise DataError(f"{root} is no folder; give a data set folder or a manifest ending in .csv")
    closed: list[Fault] = []
    images = tuple(images_below(root, closed))
    read = [part for layout in layouts() for part in layout.read(images)]
    found = _checked(root, [*read, *closed], images)
    if not found.cases and not found.faults:
        raise DataError(_nothing_found(found))
    return found


def whole_path(path: Path | str) -> Path:
    """Write a path without `~`."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(
            f"{path}: it is not known where this home folder lies; write the whole path (for the "
            "cache --cache or data.cache)"
        ) from error


def layouts() -> list[Layout]:
    """List the modules of this folder that read a data set."""
    names = [module.name for module in iter_modules([str(Path(__file__).parent)])]
    modules = [
        import_module(f"bts_lightning.data.layouts.{name}") for name in names if name != "find"
    ]
    return [cast(Layout, module) for module in modules if hasattr(module, "read")]


def images_below(root: Path, closed: list[Fault]) -> Iterator[Image]:
    """Yield name without ending and path of every NIfTI file, in one order on every machine.

    Args:
        closed: here come the folders that cannot be read.
    """

    def blame(error: OSError) -> None:
        folder = Path(error.filename)
        closed.append(Fault(folder.name, folder, f"cannot be opened: {error.strerror}"))

    seen: set[str] = set()
    for folder, folders, files in os.walk(root, onerror=blame, followlinks=True):
        here = Path(folder)
        # A link to a folder above would never end.
        if (real := os.path.realpath(here)) in seen:
            folders.clear()
            continue
        seen.add(real)
        for name in sorted(folders):
            # Some unpackers leave `X_t1.nii/`, a folder around a file with an internal name.
            try:
                inner = _nifti_files(here / name) if _stem(name) is not None else []
            except OSError:
                # The walk will blame it.
                continue
            stem = _stem(name)
            if stem is not None and len(inner) == 1:
                yield Image(stem, inner[0])
                folders.remove(name)
            elif stem and not inner and not name.startswith("."):
                # It stands where an image is due; the reader will blame it.
                yield Image(stem, here / name)
        # Dot folders hold our cache, and `._` files are what macOS adds.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in _nifti_files(here, files):
            yield Image(_stem(path.name) or path.name, path)


def _nifti_files(folder: Path, names: list[str] | None = None) -> list[Path]:
    names = [path.name for path in folder.iterdir()] if names is None else names
    return [folder / n for n in sorted(names) if _stem(n) is not None and not n.startswith(".")]


def _stem(name: str) -> str | None:
    for ending in (".nii.gz", ".nii"):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return None


def _checked(root: Path, read: Iterable[Case | Fault], images: Sequence[Image]) -> DataSet:
    """Refuse what no reader may hand on, and tell which images nobody has claimed."""
    cases = sorted((part for part in read if isinstance(part, Case)), key=lambda case: case.name)
    broken = list(_faults_between(root, cases))
    names = {fault.case for fault in broken}
    faults = [*(part for part in read if isinstance(part, Fault)), *broken]
    claimed = {file for case in cases for file in case.files}
    claimed |= {file for fault in faults for file in (fault.file, *fault.others)}
    return DataSet(
        root,
        tuple(case for case in cases if case.name not in names),
        tuple(faults),
        tuple(image.path for image in images if image.path not in claimed),
    )


def _faults_between(root: Path, cases: Sequence[Case]) -> Iterator[Fault]:
    owner: dict[str, str] = {}
    first: dict[str, Path] = {}
    for case in cases:
        file = next(iter(case.files), root)
        if case.name in first:
            reason = f"a second case of this name, beside {first[case.name]}; rename one of them"
            yield Fault(case.name, file, reason)
        first.setdefault(case.name, file)
        if not case.images:
            yield Fault(case.name, file, "a case without any image")
        # A file has several names where links lead to it, or a manifest goes through `..`.
        images = list(case.images.values())
        given = [
            *(dict.fromkeys(images) if case.channels else images),
            *([case.label] if case.label else []),
        ]
        real = [os.path.realpath(file) for file in given]
        for i, file in enumerate(given):
            if real[i] in real[:i]:
                yield Fault(case.name, file, "one file as two images, or as image and label")
            elif owner.setdefault(real[i], case.name) != case.name:
                yield Fault(case.name, file, f"a file of case {owner[real[i]]} as well")


def _nothing_found(found: DataSet) -> str:
    seen = ", ".join(path.name for path in found.ignored[:3])
    what = (
        f"{len(found.ignored)} NIfTI files, whose names no layout has ({seen})"
        if found.ignored
        else "no NIfTI file"
    )
    known = ", ".join(layout.KNOWN for layout in layouts())
    return (
        f"{found.root} holds {what}; known are {known} and a manifest.csv with the columns "
        "case, t1, t1c, t2, flair, label (docs/data.md)"
    )
