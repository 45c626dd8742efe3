"""Disturb a process at the N-th change of a file.

Python imports this at its start where the folder is on PYTHONPATH, so children have it too. What an
extension writes without Python's knowledge is not counted; torch, NumPy, pandas, NiBabel and Pillow
write through files that Python has opened.
"""

import json
import os
import signal
import sys
from typing import Any

_CHANGES = {
    f"os.{what}" for what in ("rename", "remove", "mkdir", "rmdir", "truncate", "link", "symlink")
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def install(below: str, counter: str, at: int = 0, does: str = "kill", rank: str = "") -> None:
    """Count changes, and do something before one of them.

    Args:
        below: the folder whose changes count.
        counter: a file that grows by a byte a change: `o` by this process itself, `c` by a child.
        at: the change to disturb; none if 0.
        does: `kill`, `stop`, `interrupt` or `raise`.
        rank: the local rank that is meant; any if empty.
    """
    below = os.path.realpath(below) + os.sep
    owner = os.getpid()
    count = os.open(counter, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def look(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            if not args[2] & _WRITES:
                return
        elif event not in _CHANGES:
            return
        if rank not in ("", os.environ.get("LOCAL_RANK")) or not _place(args).startswith(below):
            return
        os.write(count, b"o" if os.getpid() == owner else b"c")
        if os.fstat(count).st_size == at:
            disturb(does)

    sys.addaudithook(look)


def _place(args: tuple[Any, ...]) -> str:
    if not isinstance(args[0], str | bytes | os.PathLike):
        return ""  # a file that is open already
    place, folder = os.fsdecode(args[0]), "."
    # `shutil.rmtree` names files by the folder that they lie in; the last argument says which.
    if isinstance(args[-1], int) and args[-1] > 2:
        folder = f"/proc/self/fd/{args[-1]}"
    return os.path.normpath(f"{os.path.realpath(folder)}/{place}" if place[:1] != "/" else place)


def disturb(does: str) -> None:
    """Kill, stop or interrupt this process, or raise."""
    if does == "raise":
        raise RuntimeError("raised on purpose")
    numbers = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "interrupt": signal.SIGINT}
    os.kill(os.getpid(), numbers[does])


if wish := os.environ.get("BTS_TEST_FAULT"):
    install(**json.loads(wish))
