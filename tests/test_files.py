"""Files appear whole or not at all; a lock keeps others out, and says so where there is none."""

import contextlib
import errno
import fcntl
import hashlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bts_lightning.files import (
    NotAFileError,
    alone,
    clear_unfinished,
    content,
    overwritten,
    regular,
    sha256,
    unfinished,
    whole,
    write_whole,
)


def test_a_file_appears_with_its_folders_in_utf8(tmp_path: Path) -> None:
    file = write_whole(tmp_path / "a" / "b.txt", "Δ 1\n")
    assert file.read_bytes() == "Δ 1\n".encode()
    assert write_whole(file, b"2").read_bytes() == b"2"
    assert [path.name for path in file.parent.iterdir()] == ["b.txt"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = write_whole(tmp_path / "a", "old")

    def break_off() -> None:
        with whole(file) as stream:
            stream.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_two_who_write_at_once_do_not_mix(tmp_path: Path) -> None:
    file = tmp_path / "a"
    with whole(file) as first, whole(file) as second:
        first.write(b"first")
        second.write(b"second")
    assert file.read_bytes() == b"first"
    assert unfinished(file) != unfinished(file)


def test_a_lasting_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, seen = tmp_path / "a", []

    def sync(handle: int) -> None:
        (part,) = tmp_path.iterdir()
        assert Path(f"/proc/self/fd/{handle}").resolve() == part != file
        seen.append(part.read_bytes())

    monkeypatch.setattr("os.fsync", sync)
    with whole(file, lasting=True) as stream:
        stream.write(b"much")
    assert seen == [b"much"]


@pytest.mark.parametrize("name", ["folder", "lock"])
def test_a_lock_keeps_another_process_out_until_it_ends(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    (tmp_path / "folder").mkdir()
    script = (
        "import sys; from pathlib import Path; from bts_lightning.files import alone\n"
        f"with alone(Path({str(path)!r})) as turn:\n    print(turn, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ours\n"
        with alone(path, wait=False) as turn:
            assert turn == "theirs"
        other.kill()
    with alone(path) as turn:
        assert turn == "ours"


def test_a_child_does_not_keep_the_lock_of_its_dead_parent(tmp_path: Path) -> None:
    script = (
        "import os, time; from pathlib import Path; from bts_lightning.files import alone\n"
        f"with alone(Path({str(tmp_path / 'lock')!r})):\n"
        "    if os.fork() == 0: print(os.getpid(), flush=True)\n"
        "    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        try:
            with alone(tmp_path / "lock", wait=False) as turn:
                assert turn == "ours"
        finally:
            os.kill(child, signal.SIGKILL)


def test_what_a_killed_process_was_writing_is_removed_by_the_next(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from bts_lightning.files import whole\n"
        f"with whole(Path({str(tmp_path / 'a')!r})): print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        (part,) = tmp_path.iterdir()
        clear_unfinished(tmp_path)
        assert part.exists(), "it is being written"
        other.kill()
    (tmp_path / ".download.part").touch()  # somebody else's
    write_whole(tmp_path / "b", "")
    assert sorted(file.name for file in tmp_path.iterdir()) == [".download.part", "b"]


def test_a_disk_without_locks_is_told_and_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with alone(tmp_path / "lock") as turn:
        assert turn == "unlocked"


def test_digest_is_of_the_bytes(tmp_path: Path) -> None:
    assert sha256(write_whole(tmp_path / "a", "x")) == hashlib.sha256(b"x").hexdigest()


def test_a_file_is_known_by_any_of_its_names(tmp_path: Path) -> None:
    file = write_whole(tmp_path / "a" / "x", "")
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "hard").hardlink_to(file)
    for name in ("a/x", "a/../a/x", "link/x", "hard"):
        found = overwritten([tmp_path / "new", tmp_path / name], [file])
        assert found == (tmp_path / name, file)
    assert overwritten([tmp_path / "a" / "y"], [file, tmp_path / "gone"]) is None


def test_only_a_file_is_opened(tmp_path: Path) -> None:
    (file := tmp_path / "file").write_bytes(b"1")
    (link := tmp_path / "link").symlink_to(file)
    assert content(file) == content(link) == b"1"
    os.mkfifo(fifo := tmp_path / "fifo")
    (zero := tmp_path / "zero").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as door:
        # The name of a socket may have about a hundred letters.
        with contextlib.chdir(tmp_path):
            door.bind("socket")
        for other in (fifo, zero, tmp_path, tmp_path / "socket"):
            with pytest.raises(NotAFileError, match=f"not a regular file: '{other}'"):
                regular(other)
    with pytest.raises(FileNotFoundError):
        regular(tmp_path / "none")
