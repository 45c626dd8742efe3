"""Files that appear whole or not at all, the lock of those who write them, and a safe opener."""

import errno
import fcntl
import hashlib
import json
import os
import stat
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import IO, Literal

# What a process that was killed may leave.
UNFINISHED = f".*.{'[0-9a-f]' * 32}.part"
Turn = Literal["ours", "theirs", "unlocked"]
_tidied: set[Path] = set()
_held: set[int] = set()


class NotAFileError(OSError):
    """A FIFO, a device, a socket or a folder stands where a file is due."""


def regular(file: Path) -> BufferedReader:
    """Open a file of somebody else to read it: a FIFO would wait for ever, a device never end.

    A library that needs a path is asked after `regular(file).close()`.

    Raises:
        NotAFileError: for anything else than a file, or a link to one; it is an `OSError`.
    """
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        # What a socket says, and a device without its driver.
        if error.errno not in (errno.ENXIO, errno.ENODEV):
            raise
        raise NotAFileError(error.errno, "not a regular file", str(file)) from error
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    raise NotAFileError(errno.EINVAL, "not a regular file", str(file))


def expanded(path: Path | str) -> Path:
    """Put the home of a user for `~`; where there is none, the name stays as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (that of pathlib raises)


def content(file: Path) -> bytes:
    """Read a whole file of somebody else."""
    with regular(file) as stream:
        return stream.read()


def write_whole(file: Path, content: str | bytes) -> Path:
    """Write a file so that a reader finds the old one or the new one, never half of one."""
    with whole(file) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)
    return file


@contextmanager
def whole(file: Path, *, lasting: bool = False) -> Iterator[IO[bytes]]:
    """Open a file that takes its place at the end of the block, and never after an error.

    Args:
        lasting: even a power cut right after the block does not take it back.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.parent not in _tidied:
        _tidied.add(file.parent)
        clear_unfinished(file.parent)
    temporary, handle = _begin(file)
    try:
        with os.fdopen(os.dup(handle), "wb") as stream:
            yield stream
            if lasting:
                stream.flush()
                os.fsync(stream.fileno())
        temporary.replace(file)
    except OSError as error:
        # A write that fails names no file, and a rename the unfinished one.
        if error.filename in (None, temporary):
            error.filename = str(file)
        raise
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


def clear_unfinished(folder: Path) -> None:
    """Remove the files that a process which is gone was writing; those of a living one stay."""
    for left in folder.glob(UNFINISHED):
        # Of another user, or removed by another process at this moment.
        with suppress(OSError):
            handle = os.open(left, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if _take(handle, wait=False) == "ours":
                    left.unlink()
            finally:
                os.close(handle)


def _begin(place: Path) -> tuple[Path, int]:
    """Create an unfinished file, locked as long as somebody writes it."""
    while True:
        temporary = unfinished(place)
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except OSError as error:
            error.filename = str(place)
            raise
        # Between the two, somebody may have taken it for abandoned.
        if _take(handle, wait=False) != "theirs" and os.fstat(handle).st_nlink:
            return temporary, handle
        os.close(handle)


def unfinished(place: Path) -> Path:
    """Name what will be renamed to `place`: no other process, here or elsewhere, names it so."""
    # Beside the place, because a rename to another disk is a copy.
    return place.with_name(f".{place.name}.{uuid.uuid4().hex}.part")


@contextmanager
def alone(path: Path, *, wait: bool = True) -> Iterator[Turn]:
    """Hold the lock of a folder, or of a file made for it; a killed process holds none.

    The block learns whose turn it is: "theirs" if another process has the lock and we do not
    `wait`, "unlocked" on a disk without locks, where more than one may be in the block at a time.
    """
    folder = path.is_dir()
    # A network disk locks a file for us alone only if we may write into it.
    handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT, 0o666)
    _held.add(handle)
    try:
        yield _take(handle, wait)
    finally:
        _held.discard(handle)
        os.close(handle)


def _let_go() -> None:
    """Leave a lock to the process that has taken it: a forked child may outlive it."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)


def _take(handle: int, wait: bool) -> Turn:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return "theirs"
    except OSError:
        return "unlocked"
    return "ours"


def overwritten(written: Iterable[Path], read: Iterable[Path]) -> tuple[Path, Path] | None:
    """Find a file to be written that is one of those to be read, by whatever name or link."""
    known = {mark: file for file in read for mark in _marks(file)}
    for file in written:
        for mark in _marks(file):
            if mark in known:
                return file, known[mark]
    return None


def _marks(file: Path) -> Iterator[object]:
    yield os.path.realpath(file)
    # Hard links have paths of their own; so has a disk that takes `A` for `a`.
    with suppress(OSError):
        status = file.stat()
        yield status.st_dev, status.st_ino


def sha256(file: Path) -> str:
    """Give the digest of a file's bytes."""
    with regular(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def checksum(facts: object) -> str:
    """Give a short digest of plain values, by which damage and edits are noticed."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
