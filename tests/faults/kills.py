"""Kill a verb before the N-th change of a file, run it again, and compare with the undisturbed."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
KILLED = -9
# A second is a second only where nobody was killed.
# Dates, and the commit, which may change while this runs.
_MOMENT = re.compile(
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?|\b[0-9a-f]{40}\b\+?|commit [0-9a-f]{10}\b\+?"
)
TIMED = ('"checksum": "', "speed/", "seconds", "Duration", "training_time")


@dataclass(frozen=True)
class Verb:
    """A verb to kill.

    Attributes:
        words: of the command line, in a folder of its own.
        begin: makes what the verb needs in that folder.
        environment: more variables.
    """

    words: Sequence[str]
    begin: Callable[[Path], None] = lambda folder: None
    environment: tuple[tuple[str, str], ...] = ()


class Zygote:
    """The process that runs verbs."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        pipe = subprocess.PIPE
        command = [sys.executable, "-m", "tests.faults.zygote"]
        self._process = subprocess.Popen(
            command, env=environment, stdin=pipe, stdout=pipe, text=True, cwd=ROOT
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def run(self, verb: Verb, folder: Path, fault: dict[str, Any] | None = None) -> int:
        """Run a verb in a folder and give its exit status."""
        wish = {
            "words": list(verb.words),
            "folder": str(folder),
            "environment": dict(verb.environment),
            "fault": fault,
            "log": str(folder.with_suffix(".log")),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(wish) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        return int(json.loads(answer)[0])

    def end(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


def undisturbed(zygote: Zygote, verb: Verb, folder: Path) -> bytes:
    """Run a verb to its end; give a byte for each of its changes of files, as the hook does."""
    _make(verb, folder)
    counter = folder.with_suffix(".changes")
    code = zygote.run(verb, folder, {"below": str(folder), "counter": str(counter)})
    assert code == 0, folder.with_suffix(".log").read_text()
    return counter.read_bytes()


def killed(zygote: Zygote, verb: Verb, folder: Path, at: int, again: int = 2) -> list[int]:
    """Kill a verb before a change of a file, and run it again until it ends well."""
    _make(verb, folder)
    counter = folder.with_suffix(".changes")
    fault = {"below": str(folder), "counter": str(counter), "at": at}
    codes = [zygote.run(verb, folder, fault)]
    while codes[-1] != 0 and len(codes) <= again:
        codes.append(zygote.run(verb, folder))
    return codes


def _make(verb: Verb, folder: Path) -> None:
    folder.mkdir(parents=True)
    verb.begin(folder)


def differences(one: Path, two: Path) -> Iterator[str]:
    """List what is not the same in two folders, but for times."""
    files = [
        {str(f.relative_to(place)) for f in place.rglob("*") if f.is_file()} for place in (one, two)
    ]
    yield from (f"{name} is missing" for name in sorted(files[0] - files[1]))
    yield from (f"{name} is left over" for name in sorted(files[1] - files[0]))
    for name in sorted(files[0] & files[1]):
        if not name.endswith((".lock", "/lock", "output.log", "trained.txt", "journal.log")):
            yield from (f"{name}: {what}" for what in _unequal(one, two, name))


def _unequal(one: Path, two: Path, name: str) -> Iterator[str]:
    files = [one / name, two / name]
    contents = [file.read_bytes() for file in files]
    if contents[0] == contents[1]:
        return
    if name.endswith(".ckpt"):
        yield from _differing(*(torch.load(file, weights_only=True) for file in files), "")
        return
    try:
        texts = [content.decode() for content in contents]
    except UnicodeDecodeError:
        yield "other bytes"
        return
    lines = [
        [
            _MOMENT.sub("…", line)
            for line in text.splitlines()
            if not any(word in line for word in TIMED)
        ]
        for text in texts
    ]
    if len(lines[0]) != len(lines[1]):
        yield f"{len(lines[0])} lines, {len(lines[1])} now"
    for a, b in zip(*lines, strict=False):
        if a != b:
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), 0)
            yield f"{a[max(0, at - 40) : at + 40]!r}, now {b[max(0, at - 40) : at + 40]!r}"


def _differing(a: Any, b: Any, key: str) -> Iterator[str]:
    if any(word in key for word in TIMED):
        return
    if isinstance(a, dict) and isinstance(b, dict):
        for name in dict.fromkeys([*a, *b]):
            yield from _differing(a.get(name, "nothing"), b.get(name, "nothing"), f"{key}.{name}")
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from _differing(x, y, f"{key}.{i}")
    elif isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if (
            a.dtype != b.dtype
            or a.shape != b.shape
            or not torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
        ):
            yield f"{key}: another tensor"
    elif a != b and (a == a or b == b):
        yield f"{key}: {str(a)[:80]}, now {str(b)[:80]}"


def attack(
    zygote: Zygote, verb: Verb, folder: Path, points: Callable[[bytes], Iterable[int]]
) -> list[str]:
    """Kill a verb before some of its changes; print the counts, and give what is not exact."""
    # In one place one after the other, because checkpoints and tables name it.
    place, whole = folder / "case", folder / "whole"
    changes = undisturbed(zygote, verb, place)
    place.rename(whole)
    place.with_suffix(".log").unlink()
    place.with_suffix(".changes").unlink()
    wrong: list[str] = []
    tried = list(points(changes))
    for at in tried:
        codes = killed(zygote, verb, place, at)
        # Whoever waits for children leaves a sign of life now and then.
        if place.with_suffix(".changes").stat().st_size < at <= len(changes) - 3:
            wrong.append(f"at {at}: was never killed")
        if codes[-1] != 0:
            log = place.with_suffix(".log").read_text().splitlines()
            wrong.append(f"at {at}: status {codes}: {' / '.join(log[-3:])[-600:]}")
        else:
            wrong += [f"at {at}: {what}" for what in differences(whole, place)]
        shutil.rmtree(place)
        place.with_suffix(".log").unlink()
        place.with_suffix(".changes").unlink()
    exact = len(tried) - len({line.partition(":")[0] for line in wrong})
    print(
        f"{verb.words[0]}: {len(changes)} changes of files, killed before {len(tried)} of them, "
        f"{exact} exact"
    )
    return wrong
