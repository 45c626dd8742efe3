"""Commands in processes of their own: started, watched, stopped, and found again after a crash."""

import ctypes
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from types import FrameType

from bts_lightning.files import content, write_whole

# A worker elsewhere that has not been heard of for so long is dead; longer than a disk may hang.
SILENT_AFTER = 300.0
_BEAT_EVERY = 10.0
# A step and a checkpoint fit in; after that a training that was asked to stop is killed.
_PATIENCE = 300.0
_IDENTITY = re.compile(r"\d{1,10}:\d*")
LOG, _BEACON = "output.log", "worker.json"
# The line of the log with which a command begins; one that goes on stands below the one before.
_START = "$ "
# It begins once it is written down who it is: nobody could end it if its worker died before.
_WAIT_FOR_WORD = 'read -r go && exec "$0" "$@" </dev/null'
# What wandb says at the end of every process is no reason.
_CHATTER = "wandb: "


class Process:
    """A command that writes into a run folder; its output goes to `output.log` there."""

    def __init__(self, command: Sequence[str], run: Path, environment: Mapping[str, str]) -> None:
        self.run = run
        self._asked: float | None = None
        self._ended = False
        self._beaten = 0.0
        run.mkdir(parents=True, exist_ok=True)
        with (run / LOG).open("ab") as log:
            log.write(f"{_START}{shlex.join(command)}\n".encode())
            log.flush()
            # A session of its own: Ctrl-C reaches the scheduler only, which then stops it in order.
            self._process = subprocess.Popen(
                ["sh", "-c", _WAIT_FOR_WORD, *command],
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.beat()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as stdin:
            stdin.write(b"go\n")

    def poll(self) -> int | None:
        """Give the exit status once it has ended; meanwhile say that its worker lives."""
        code = self._process.poll()
        if code == -signal.SIGKILL and not self._ended:
            # It could not say so itself, and others ask its log.
            with (self.run / LOG).open("a", encoding="utf-8") as log:
                log.write("error: killed, which is what the system does when memory runs out\n")
        self._ended = code is not None
        if code is None and time.monotonic() - self._beaten > _BEAT_EVERY:
            self.beat()
        if code is None and self._asked and time.monotonic() - self._asked > _PATIENCE:
            self.kill()
        return code

    def stop(self) -> None:
        """Ask it to save its state and end."""
        if self._asked is None:
            self._asked = time.monotonic()
            _signal(self._process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        _signal(self._process.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Wait for the end, however it comes."""
        while (code := self.poll()) is None:
            time.sleep(0.2)
        return code

    def beat(self) -> None:
        """Leave a sign of life for workers that look after the dead."""
        self._beaten = time.monotonic()
        leave_sign(self.run, self._process.pid)


def leave_sign(run: Path, training: int | None = None) -> None:
    """Write down who works on a run; the training of a worker before is kept, to be ended."""
    before = _sign(run) or {}
    sign = {
        "host": socket.gethostname(),
        "worker": _identity(os.getpid()),
        "training": _identity(training) if training else before.get("training"),
    }
    write_whole(run / _BEACON, json.dumps(sign) + "\n")


def remove_sign(run: Path) -> None:
    """Say that nobody works on a run any more."""
    (run / _BEACON).unlink(missing_ok=True)


def remove_dead_sign(run: Path) -> None:
    """Take away what a worker left who died at the very end of a run."""
    if not is_worked_on(run):
        remove_sign(run)


def is_worked_on(run: Path) -> bool:
    """Say whether a worker, here or on another machine, still looks after a run."""
    sign = _sign(run)
    if sign is None:
        return False
    if sign["host"] == socket.gethostname():
        return _lives(sign["worker"])
    # The clock of the disk, because those of two machines may differ.
    with TemporaryFile(dir=run) as probe:
        now = os.fstat(probe.fileno()).st_mtime
    return now - (run / _BEACON).stat().st_mtime < SILENT_AFTER


def is_from_elsewhere(run: Path) -> bool:
    """Say whether the last worker was on another machine, where its training may go on alone."""
    sign = _sign(run)
    return sign is not None and sign["host"] != socket.gethostname()


def end_orphan(run: Path) -> None:
    """Stop a training on this machine whose worker died; two must not write into one run."""
    sign = _sign(run)
    if sign is None or sign["host"] != socket.gethostname() or not _lives(sign["training"]):
        return
    pid = int(str(sign["training"]).partition(":")[0])
    started = time.monotonic()
    _signal(pid, signal.SIGTERM)
    while _lives(sign["training"]):
        if time.monotonic() - started > _PATIENCE:
            _signal(pid, signal.SIGKILL)
        time.sleep(0.1)


def reason(run: Path, code: int) -> str:
    """Say in one line why the last command in a run ended badly."""
    return last_word(run) or f"exit status {code}"


def last_word(run: Path) -> str:
    """Give the last error of the last command in a run, or its last line."""
    try:
        lines = (run / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    begins = max((i for i, line in enumerate(lines) if line.startswith(_START)), default=-1)
    said = [s for s in lines[begins + 1 :] if s.strip() and not s.startswith(_CHATTER)]
    errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
    return (errors or said or [""])[-1].strip()


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Stop in order when the machine is taken away, as at Ctrl-C."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _sign(run: Path) -> dict[str, str | None] | None:
    try:
        sign: dict[str, str | None] = json.loads(content(run / _BEACON))
        _, pids = sign["host"], (sign["worker"], sign["training"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    # What is damaged, or from somebody else, is the sign of nobody.
    is_ours = pids[0] and all(one is None or _IDENTITY.fullmatch(str(one)) for one in pids)
    return sign if is_ours else None


def _identity(pid: int) -> str:
    """Name a process by number and start, because numbers are used again."""
    try:
        # The name in parentheses may hold spaces; the start is the 20th field after it.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return f"{pid}:"
    return f"{pid}:" if fields[0] == "Z" else f"{pid}:{fields[19]}"


def _lives(identity: str | None) -> bool:
    if identity is None:
        return False
    pid, _, start = identity.partition(":")
    if start:
        return _identity(int(pid)) == identity
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return not Path("/proc/self/stat").exists()


def _signal(pid: int, number: signal.Signals) -> None:
    # The whole group: the processes of the other devices too.
    with suppress(ProcessLookupError):
        os.killpg(pid, number)


# Number of Linux's prctl(2).
_PARENT_DEATH_SIGNAL = 1


def end_with_parent() -> None:
    """Let Linux end this process with the one that started it, in whatever way that one ends.

    A rank that has lost the first one waits for it, on a GPU for minutes, and holds its memory.
    """
    _at_the_end_of_the_parent(signal.SIGKILL)


def outlive_parent() -> None:
    """Take that back."""
    _at_the_end_of_the_parent(0)


def _at_the_end_of_the_parent(number: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, int(number))
