"""Build the cache of a data set, many cases at once, and hand out its cases."""

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bts_lightning.data.cache.cached_case import CachedCase
from bts_lightning.data.cache.nifti import count_voxels
from bts_lightning.data.cache.normalise import Crop, Normalisation, Recipe
from bts_lightning.data.cache.prediction import write_prediction
from bts_lightning.data.cache.reading import BrokenCaseError
from bts_lightning.data.cache.ready import case_of, load_case, load_cases
from bts_lightning.data.cache.storage import check_place, ensure, is_current
from bts_lightning.data.layouts.case import Case, DataSet, Fault
from bts_lightning.data.layouts.find import find_cases, whole_path
from bts_lightning.errors import DataError
from bts_lightning.files import checksum

# All that the rest of the package needs of a data set on disk, from one place.
__all__ = [
    "CachedCase",
    "Prepared",
    "build",
    "case_of",
    "fingerprint",
    "load_case",
    "load_cases",
    "prepare",
    "write_prediction",
]

CACHE = ".bts_cache"
# Each thread holds a case, about 250 MB; more of them wait for the disk.
MOST_WORKERS = 16
# Four float16 images and a uint8 label.
BYTES_PER_VOXEL = 9
# The brain's box is about this much of a BraTS grid.
BRAIN_SHARE = 0.45


@dataclass(frozen=True)
class Prepared:
    """What became of a data set: its usable cases, all faults, where the cache lies.

    Attributes:
        built: how many cases this process built; the others were there, or came from another one.
    """

    found: DataSet
    cases: list[CachedCase]
    faults: list[Fault]
    home: Path
    built: int


def prepare(
    root: Path | str,
    cache: Path | str | None = None,
    *,
    workers: int | None = None,
    normalisation: Normalisation = "zscore",
    crop: Crop = "brain",
    scheme: str = "brats",
    skip_broken: bool = False,
) -> list[CachedCase]:
    """Give the cases of a data set, sorted by name, after building what the cache lacks.

    Args:
        cache: where to keep it; by default in the data set's folder, or in the user's cache when
            that folder cannot be written.
        workers: cases to build at once; by default one for each core.
        skip_broken: leave broken cases out in place of refusing the data set.
    """
    recipe = Recipe(normalisation=normalisation, crop=crop, scheme=scheme)
    prepared = build(root, cache, recipe=recipe, workers=workers)
    broken = {fault.case for fault in prepared.faults}
    if broken and not skip_broken:
        raise DataError(
            f"{len(broken)} of {len(broken) + len(prepared.cases)} cases in {root} are broken, "
            f"first {prepared.faults[0]}; `bts prepare {root}` lists all; mend or remove them, or "
            "set skip_broken"
        )
    if not prepared.cases:
        raise DataError(f"all {len(broken)} cases in {root} are broken, first {prepared.faults[0]}")
    return prepared.cases


def build(
    root: Path | str,
    cache: Path | str | None = None,
    *,
    recipe: Recipe | None = None,
    workers: int | None = None,
    verify: bool = False,
) -> Prepared:
    """Build what the cache lacks and tell everything about it, faults included.

    Args:
        verify: read all that is cached, and build again what is not as it was written.
    """
    recipe = recipe or Recipe()
    found = find_cases(root)
    folder = found.folder
    for case in found.cases:
        case.stored_values(recipe.scheme)  # refuses a foreign one before any work
    base, inside = _place(found, cache)
    home = (base / inside).absolute() / recipe.name
    check_place(home, base.absolute())
    pending = [case for case in found.cases if not is_current(case, folder, home, recipe)]
    _check_space(pending, home, recipe)
    attempt = partial(_attempt, root=folder, home=home, recipe=recipe, verify=verify)
    outcomes = _build_all(found.cases if verify else pending, attempt, workers)
    broken = {n: outcome for n, outcome in outcomes.items() if isinstance(outcome, Exception)}
    faults = [*found.faults, *(fault for error in broken.values() for fault in error.faults)]
    return Prepared(
        found=found,
        cases=[CachedCase(home / case.name) for case in found.cases if case.name not in broken],
        faults=sorted(faults, key=lambda fault: (fault.case, str(fault.file))),
        home=home,
        built=list(outcomes.values()).count("built"),
    )


def fingerprint(cases: Sequence[CachedCase]) -> str:
    """Name the content of a data set: the same files give the same name on every machine."""
    lines = []
    for case in sorted(cases, key=lambda case: case.name):
        request = case.description["request"]
        digests = {source["file"]: source["sha256"] for source in case.description["sources"]}
        images = {modality: digests[file] for modality, file in request["images"].items()}
        label = digests[request["label"]] if request["label"] else None
        lines.append([case.name, images, label, request["label_values"], request["channels"]])
    return checksum(lines)


def _place(found: DataSet, cache: Path | str | None) -> tuple[Path, Path]:
    """Choose a folder that belongs to this data set alone: what the user names, and what we add."""
    if cache is None:
        if os.access(found.folder, os.W_OK):
            return found.folder, Path(CACHE, "" if found.root.is_dir() else found.root.name)
        cache = "~/.cache/bts_lightning"
    place = found.root.resolve()
    # Two data sets may use the same names for different cases.
    mark = hashlib.sha256(str(place).encode()).hexdigest()[:8]
    if "\0" in str(cache):
        raise DataError(f"no folder can be called {str(cache)!r}; give the cache another place")
    return whole_path(cache), Path(f"{place.name}-{mark}")


def _check_space(pending: Sequence[Case], home: Path, recipe: Recipe) -> None:
    share = BRAIN_SHARE if recipe.crop == "brain" else 1.0
    voxels = sum(count_voxels(case.files[0]) for case in pending)
    needed = share * BYTES_PER_VOXEL * voxels
    place = next(folder for folder in (home, *home.parents) if folder.exists())
    if not place.is_dir():
        raise DataError(
            f"{place} is no folder, so the cache cannot lie in it; give it another place"
        )
    free = shutil.disk_usage(place).free
    if needed > free:
        raise DataError(
            f"the cache of {len(pending)} cases needs about {needed / 1e9:.1f} GB, {place} has "
            f"{free / 1e9:.1f} GB free; free some, or give the cache another place"
        )


def _build_all(
    pending: Sequence[Case],
    attempt: Callable[..., Literal["built", "found", "busy"] | BrokenCaseError],
    workers: int | None,
) -> dict[str, Literal["built", "found"] | BrokenCaseError]:
    """Build cases in threads, as zlib and NumPy let other threads run.

    Worker processes would outlive a process that is killed, and cannot start from a script without
    a main guard.
    """
    outcomes: dict[str, Literal["built", "found"] | BrokenCaseError] = {}
    with (
        _progress(enabled=bool(pending)) as progress,
        ThreadPoolExecutor(workers or min(_cores(), MOST_WORKERS)) as pool,
    ):
        task = progress.add_task("Preparing", total=len(pending))
        # First what nobody else is at, so that processes that start together share the work.
        for wait in (False, True):
            futures = {pool.submit(attempt, case, wait=wait): case for case in pending}
            pending = []
            try:
                for future in as_completed(futures):
                    outcome = future.result()
                    if outcome == "busy":
                        pending.append(futures[future])
                        continue
                    outcomes[futures[future].name] = outcome
                    progress.advance(task)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return outcomes


def _attempt(
    case: Case, *, root: Path, home: Path, recipe: Recipe, wait: bool, verify: bool
) -> Literal["built", "found", "busy"] | BrokenCaseError:
    try:
        return ensure(case, root, home, recipe, wait=wait, verify=verify)
    except BrokenCaseError as error:
        return error


def _progress(*, enabled: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not enabled,
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
