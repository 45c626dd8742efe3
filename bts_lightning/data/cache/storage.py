"""One case of the cache: is it current, whose turn is it to build it, and how it appears whole."""

import contextlib
import errno
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bts_lightning.data.cache.cached_case import DESCRIPTION, CachedCase
from bts_lightning.data.cache.normalise import Recipe
from bts_lightning.data.cache.ready import MemoryCase, load_case
from bts_lightning.data.layouts.case import Case
from bts_lightning.errors import DataError
from bts_lightning.files import alone, sha256, unfinished, whole, write_whole

# Locks and unfinished cases, out of the way of the finished ones.
WORK = ".work"


def is_current(case: Case, root: Path, home: Path, recipe: Recipe) -> bool:
    """Tell without reading a voxel whether the cache has this case as files and recipe are now."""
    description = _described(home / case.name)
    return (
        description is not None
        and description["request"] == _request(case, root, recipe)
        and _stamps(description) == _stamps({"sources": _sources(case, root)})
    )


def ensure(
    case: Case, root: Path, home: Path, recipe: Recipe, *, wait: bool = True
) -> Literal["built", "found", "busy"]:
    """Build a case unless it is there, or is being built elsewhere and we do not `wait`.

    Raises:
        BrokenCaseError: when its files cannot be used.
    """
    if is_current(case, root, home, recipe):
        return "found"
    work = home / WORK / case.name
    work.mkdir(parents=True, exist_ok=True)
    with alone(work / "lock", wait=wait) as turn:
        if turn == "theirs":
            return "busy"
        if turn == "ours":
            # Alone here, so what else lies here was left by a process that was killed.
            _clear(work)
        # Another process may have built it while we waited.
        if is_current(case, root, home, recipe) or _restamp(case, root, home, recipe):
            return "found"
        _build(case, root, home / case.name, unfinished(work / "case"), recipe)
    return "built"


def _clear(work: Path) -> None:
    for left in work.iterdir():
        if left.is_dir():
            shutil.rmtree(left)


def _build(case: Case, root: Path, folder: Path, part: Path, recipe: Recipe) -> None:
    # Before reading: if a file changes while we read it, the case is stale next time.
    sources = _sources(case, root)
    ready = load_case(case, recipe)
    for source, path in zip(sources, case.files, strict=True):
        source["sha256"] = ready.digests[path]
    try:
        part.mkdir()
        _write(ready, _request(case, root, recipe), sources, part)
        _publish(part, folder)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(
                f"no space left in {folder.parent} for case {case.name}; free some, or give the "
                "cache another place"
            ) from error
        raise


def _write(
    ready: MemoryCase, request: dict[str, Any], sources: list[dict[str, Any]], folder: Path
) -> None:
    arrays: dict[str, NDArray[Any]] = {"image.npy": ready.image, "foreground.npy": ready.foreground}
    if ready.label is not None:
        arrays["label.npy"] = ready.label
    sizes = {}
    for name, array in sorted(arrays.items()):
        # A power cut shall not keep the folder's name and lose what is in it.
        with whole(folder / name, lasting=True) as file:
            np.save(file, array)
            sizes[name] = file.tell()
    description = {
        "name": ready.name,
        "patient": ready.patient,
        "layout": ready.layout,
        "available": ready.available,
        "geometry": ready.geometry.to_json(),
        "label_found": ready.label_found,
        "volumes_ml": ready.volumes_ml,
        "arrays": sizes,
        "request": request,
        "sources": sources,
    }
    with whole(folder / DESCRIPTION, lasting=True) as file:
        file.write(_json(description))


def _publish(part: Path, folder: Path) -> None:
    """Move a finished case to its place in one step, after an outdated one has left it."""
    while True:
        try:
            part.rename(folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        outdated = part.with_name(f"{part.name}.outdated")
        with contextlib.suppress(FileNotFoundError):
            folder.rename(outdated)
        shutil.rmtree(outdated, ignore_errors=True)


def _described(folder: Path) -> dict[str, Any] | None:
    """Read the description of a case whose arrays are all there in full length."""
    try:
        description = CachedCase(folder).description
        whole = all(
            (folder / name).stat().st_size == size for name, size in description["arrays"].items()
        )
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return description if whole else None


def _request(case: Case, root: Path, recipe: Recipe) -> dict[str, Any]:
    """Say what is to be prepared from which files; when that changes, the case is built again."""
    request = {
        "patient": case.patient,
        "layout": case.layout,
        "images": {modality: _shown(path, root) for modality, path in case.images.items()},
        "label": _shown(case.label, root) if case.label else None,
        "label_values": case.label_values,
        "channels": case.channels,
        "recipe": asdict(recipe),
    }
    # As a file would give it back, to compare like with like.
    plain: dict[str, Any] = json.loads(_json(request))
    return plain


def _sources(case: Case, root: Path) -> list[dict[str, Any]]:
    sources = []
    for path in case.files:
        try:
            status = path.stat()
            stamp = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
        except OSError:
            # Reading it will say what is wrong.
            stamp = {"size": -1, "mtime_ns": -1}
        sources.append({"file": _shown(path, root), **stamp})
    return sources


def _stamps(description: dict[str, Any]) -> list[tuple[str, int, int]]:
    return [(s["file"], s["size"], s["mtime_ns"]) for s in description["sources"]]


def _restamp(case: Case, root: Path, home: Path, recipe: Recipe) -> bool:
    """Keep a case whose files were only copied or touched: same bytes, new time."""
    description = _described(home / case.name)
    if description is None or description["request"] != _request(case, root, recipe):
        return False
    now = _sources(case, root)
    for old, new, path in zip(description["sources"], now, case.files, strict=True):
        if old["size"] != new["size"]:
            return False
        new["sha256"] = sha256(path)
        if new["sha256"] != old["sha256"]:
            return False
    write_whole(home / case.name / DESCRIPTION, _json({**description, "sources": now}))
    return True


def _shown(path: Path, root: Path) -> str:
    # Relative where possible, so that a data set that moves takes its cache along.
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()
