"""One process at a time in a folder: the second is told who is there."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bts_lightning.errors import UserError
from bts_lightning.files import alone

_LOCK = ".lock"


@contextmanager
def only_one(folder: Path, what: str) -> Iterator[None]:
    """Work in a folder alone; the lock of a process that is gone holds nobody up.

    Args:
        folder: of a training or an evaluation, made if need be.
        what: is done there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / _LOCK
    with alone(file, wait=False) as turn:
        if turn == "theirs":
            who = file.read_text(encoding="utf-8").strip() or "another process"
            raise UserError(
                f"{who} is at {what} {folder}; wait until it has ended, or stop that one first"
            )
        if turn == "ours":
            # In place: a new file in place of this one would have another lock.
            file.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        yield
