"""One case of the cache: is it current, whose turn is it to build it, and how it appears whole."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from bts_lightning.data.cache.cached_case import DESCRIPTION, CachedCase, sealed
from bts_lightning.data.cache.normalise import Recipe
from bts_lightning.data.cache.ready import MemoryCase, load_case
from bts_lightning.data.layouts.case import Case
from bts_lightning.errors import DataError
from bts_lightning.files import (
    UNFINISHED,
    NotAFileError,
    alone,
    content,
    sha256,
    unfinished,
    whole,
    write_whole,
)

# Locks and unfinished cases, out of the way of the finished ones.
WORK = ".work"
# All that a case has on disk.
_ARRAYS = ("foreground.npy", "image.npy", "label.npy")
# How the description of a case begins that this version has written; no other case is deleted.
_VERSION = 1
_MARK = f'{{\n "cache": {_VERSION},'.encode()


def check_place(place: Path, base: Path) -> None:
    """Refuse a cache that is no folder, or leads elsewhere by a link that a data set brought."""
    below = [folder for folder in (place, *place.parents) if folder.is_relative_to(base)]
    for folder in reversed(below):
        if folder != base and folder.is_symlink():
            raise DataError(
                f"{folder} is a link, and a cache follows none; remove it, or say where the cache "
                "lies with --cache (data.cache)"
            )
        if folder.exists() and not folder.is_dir():
            raise DataError(
                f"{folder} is no folder, and stands where the cache has one; remove it, or say "
                "where the cache lies with --cache (data.cache)"
            )


def is_current(case: Case, root: Path, home: Path, recipe: Recipe) -> bool:
    """Tell without reading a voxel whether the cache has this case as files and recipe are now."""
    folder = home / case.name
    check_place(folder, home)
    description = _described(folder)
    return (
        description is not None
        and description["request"] == _request(case, root, recipe)
        and _stamps(description) == _stamps({"sources": _sources(case, root)})
        and all(_is_marked(folder / n, array) for n, array in description["arrays"].items())
    )


def ensure(
    case: Case,
    root: Path,
    home: Path,
    recipe: Recipe,
    *,
    wait: bool = True,
    verify: bool = False,
) -> Literal["built", "found", "busy"]:
    """Build a case unless it is there, or is being built elsewhere and we do not `wait`.

    Args:
        verify: read the arrays of a case that is there, and build it again if they have changed.

    Raises:
        BrokenCaseError: when its files cannot be used.
    """
    if not verify and is_current(case, root, home, recipe):
        return "found"
    work = home / WORK / case.name
    check_place(work, home)
    work.mkdir(parents=True, exist_ok=True)
    lock = work / "lock"
    if os.path.lexists(lock) and _size(lock) is None:
        raise DataError(f"{lock} is no file, and stands where the cache has its lock; remove it")
    with alone(lock, wait=wait) as turn:
        if turn == "theirs":
            return "busy"
        if turn == "ours":
            # Alone here, so what else lies here was left by a process that was killed.
            _clear(work)
        # Another process may have built it while we waited.
        if not verify and is_current(case, root, home, recipe):
            return "found"
        if _restamp(case, root, home, recipe, verify=verify):
            return "found"
        _refuse_strangers(home / case.name)
        _build(case, root, home / case.name, unfinished(work / "case"), recipe)
    return "built"


def _clear(work: Path) -> None:
    # An outdated case that was on its way out has its name longer.
    for left in work.glob(f"{UNFINISHED}*"):
        if _holds_a_case(left):
            shutil.rmtree(left)


def _refuse_strangers(folder: Path) -> None:
    """Refuse to replace what this version has not made; it may be somebody's only copy."""
    try:
        ours = not any(folder.iterdir()) or (
            _holds_a_case(folder) and content(folder / DESCRIPTION).startswith(_MARK)
        )
    except (FileNotFoundError, NotAFileError):
        ours = not folder.exists()
    if not ours:
        raise DataError(
            f"{folder} stands where a case shall be cached, and was not made by this version; move "
            "it away, or delete it if it is an older cache"
        )


def _holds_a_case(folder: Path) -> bool:
    """Say whether a folder has files of a case, whole or not, and nothing else."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return all(
            entry.is_file(follow_symlinks=False)
            and (entry.name in (DESCRIPTION, *_ARRAYS) or Path(entry.name).match(UNFINISHED))
            for entry in entries
        )


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
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            file = folder / Path(error.filename or "").name
            raise DataError(
                f"{file} cannot be written: {error.strerror}; make room, or give the cache another "
                "place"
            ) from error
        raise


def _write(
    ready: MemoryCase, request: dict[str, Any], sources: list[dict[str, Any]], folder: Path
) -> None:
    arrays: dict[str, NDArray[Any]] = {"image.npy": ready.image, "foreground.npy": ready.foreground}
    if ready.label is not None:
        arrays["label.npy"] = ready.label
    written = {}
    for name, array in sorted(arrays.items()):
        # A power cut shall not keep the folder's name and lose what is in it.
        with whole(folder / name, lasting=True) as file:
            written[name] = _save(file, array)
        _mark(folder / name, written[name])
    description = {
        "cache": _VERSION,
        "name": ready.name,
        "patient": ready.patient,
        "layout": ready.layout,
        "available": ready.available,
        "geometry": ready.geometry.to_json(),
        "label_found": ready.label_found,
        "volumes_ml": ready.volumes_ml,
        "arrays": written,
        "request": request,
        "sources": sources,
    }
    with whole(folder / DESCRIPTION, lasting=True) as file:
        file.write(sealed(description))


def _save(file: IO[bytes], array: NDArray[Any]) -> dict[str, Any]:
    """Write what `np.save` writes, which does not tell why it could not; give size and checksum."""
    array = np.ascontiguousarray(array)
    start = BytesIO()
    header = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(start, header)
    digest = hashlib.sha256()
    for part in (start.getvalue(), array.data):
        file.write(part)
        digest.update(part)
    return {"size": file.tell(), "sha256": digest.hexdigest()}


def _mark(file: Path, array: dict[str, Any]) -> None:
    """Bind the time of a file to what is in it: whoever writes into it later changes the fraction.

    So a start asks for the time alone; copies that keep times keep the mark.
    """
    status = file.stat()
    second = status.st_mtime_ns // 10**9 * 10**9
    os.utime(file, ns=(status.st_atime_ns, second + _fraction(array)))


def _is_marked(file: Path, array: dict[str, Any]) -> bool:
    fraction = file.stat().st_mtime_ns % 10**9
    # A disk that keeps whole seconds only tells nothing; there `bts prepare --verify` does.
    return fraction in (0, _fraction(array))


def _fraction(array: dict[str, Any]) -> int:
    """Give nanoseconds, in steps that every disk keeps which keeps fractions."""
    return (1 + int(array["sha256"][:8], 16) % 999_999) * 1000


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
        arrays = description["arrays"].items()
        whole = all(_size(folder / name) == array["size"] for name, array in arrays)
    except (OSError, DataError):
        return None
    return description if whole else None


def _size(file: Path) -> int | None:
    status = file.lstat()
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _request(case: Case, root: Path, recipe: Recipe) -> dict[str, Any]:
    """Say what is to be prepared from which files; when that changes, the case is built again."""
    request = {
        "patient": case.patient,
        "layout": case.layout,
        "images": {modality: _shown(path, root) for modality, path in case.images.items()},
        "label": _shown(case.label, root) if case.label else None,
        "label_values": case.stored_values(recipe.scheme),
        "channels": case.channels,
        "recipe": recipe.to_json(),
    }
    # As a file would give it back, to compare like with like.
    plain: dict[str, Any] = json.loads(json.dumps(request))
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


def _restamp(case: Case, root: Path, home: Path, recipe: Recipe, *, verify: bool) -> bool:
    """Keep a case whose files, or whose arrays, were only copied or touched: same bytes, new time.

    Args:
        verify: read the arrays even if their times say nothing.
    """
    folder = home / case.name
    description = _described(folder)
    if description is None or description["request"] != _request(case, root, recipe):
        return False
    for name, array in description["arrays"].items():
        if verify or not _is_marked(folder / name, array):
            if sha256(folder / name) != array["sha256"]:
                return False
            # The folder of another user can be read only.
            with contextlib.suppress(PermissionError):
                _mark(folder / name, array)
    now = _sources(case, root)
    for old, new, path in zip(description["sources"], now, case.files, strict=True):
        if old["size"] != new["size"]:
            return False
        new["sha256"] = old["sha256"] if old["mtime_ns"] == new["mtime_ns"] else sha256(path)
        if new["sha256"] != old["sha256"]:
            return False
    if now != description["sources"]:
        write_whole(folder / DESCRIPTION, sealed({**description, "sources": now}))
    return True


def _shown(path: Path, root: Path) -> str:
    # Relative where possible, so that a data set that moves takes its cache along.
    return str(path.relative_to(root) if path.is_relative_to(root) else path)
