"""Measure rows in a process of their own, which may run out of memory, die, or never end."""

import argparse
import multiprocessing
import os
import shlex
import signal
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from bts_lightning.bench import loader, step, subsets
from bts_lightning.bench.plan import Pace, Row
from bts_lightning.bench.result import Result
from bts_lightning.bench.step import FAILED
from bts_lightning.bench.timing import OUT_OF_MEMORY, free, reason
from bts_lightning.errors import Parser

# What a row can ask for.
MODULES = {"loader": loader, "step": step, "subsets": subsets}
# Imports and the arithmetic of a network, on a slow processor.
PATIENCE = 300.0
# A row may take so many times as long as was planned, and these seconds more; a processor may be
# busy with something else.
LIMIT, GRACE = 3, {"cpu": 600, "cuda": 60}


class Worker:
    """A process that measures row after row; a new one takes over where one has failed.

    Args:
        device: where to measure.
        scratch: for data, and for what a row has found before it is stopped.
    """

    def __init__(self, device: str, scratch: Path, pace: Pace) -> None:
        self._device, self._rows = device, scratch / "rows"
        self._given = device, scratch, self._rows, pace
        self._process: Any = None

    def measure(self, row: Row, left: float) -> tuple[Result | None, float, str]:
        """Give the result, if there is one, the seconds that were planned, and what came of it."""
        self._start()
        file = self._rows / f"{row.words.partition(' ')[0]}-{self._device}.json"
        file.unlink(missing_ok=True)
        planned = float("nan")
        try:
            planned = self._ask(row, PATIENCE)
            if planned > left:
                return None, planned, f"left out: {max(0, left):.0f} s were left"
            found: Result = self._ask("go", min(left, LIMIT * planned + GRACE[self._device]))
        except _NothingError as error:
            self.close()
            # What it had saved until then.
            return Result.read(file) if file.exists() else None, planned, str(error)
        failed = failures(found)
        if failed not in ("", FAILED + OUT_OF_MEMORY):
            # It may have spoilt the device for all that this process would do.
            self.close()
        return found, planned, failed or "measured"

    def close(self) -> None:
        """End the process and those of its compiler."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
            self._process.join()
            self._process = None

    def _start(self) -> None:
        if self._process is None:
            here, there = multiprocessing.Pipe()
            # A fork would share what CUDA holds.
            context = multiprocessing.get_context("spawn")
            self._process = context.Process(target=_serve, args=(there, *self._given), daemon=True)
            self._process.start()
            there.close()
            self._connection = here

    def _ask(self, question: Row | str, seconds: float) -> Any:
        try:
            self._connection.send(question)
            if not self._connection.poll(seconds):
                raise _NothingError(f"stopped after {seconds:.0f} s")
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            raise _NothingError(FAILED + "the process died") from error
        if isinstance(answer, str):
            raise _NothingError(answer)
        return answer


class _NothingError(Exception):
    """The text says why."""


def failures(result: Result) -> str:
    """Say what of a result could not be measured, as the last cells of its rows do."""
    last = [str(row[-1]) for table in result.tables for row in table.rows]
    return "; ".join(dict.fromkeys(cell for cell in last if cell.startswith(FAILED)))


def _serve(connection: Connection, device: str, scratch: Path, results: Path, pace: Pace) -> None:
    """Answer with the seconds of each row, and then with what was found or why nothing was."""
    # The compiler's processes end with this one, and this one with whoever asks.
    os.setsid()
    Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            question = connection.recv()
        except EOFError:
            return
        try:
            if isinstance(question, Row):
                row = question
                connection.send(row.seconds(pace))
            else:
                connection.send(_result(row, torch.device(device), scratch, results))
        except Exception as error:
            connection.send(FAILED + reason(error))
        free()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(0, signal.SIGKILL)


def _result(row: Row, device: torch.device, scratch: Path, results: Path) -> Result:
    family, *words = shlex.split(row.words)
    module: Any = MODULES[family]
    parser = Parser(prog=f"bts bench {family}")
    module.add_arguments(parser)
    args = argparse.Namespace(device=device, scratch=scratch, results=results)
    args.command = f"bts bench {row.words} --device {device.type}"
    args.quick, args.no_peers = False, True
    began = time.monotonic()
    result: Result = module.measure(parser.parse_args(words, args))
    result.seconds = time.monotonic() - began
    return result
