"""Processes that run TorchIO transforms, watched: an error of theirs ends a training in words."""

import atexit
import ctypes
import mmap
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from math import prod
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bts_lightning.data.transformed import named, transform_patch
from bts_lightning.errors import ConfigError
from bts_lightning.modalities import MODALITIES, Subset

Array = NDArray[Any]
# Seconds; so often a transform that runs is looked after.
_LOOK = 0.5
# Number of Linux's prctl(2).
_PARENT_DEATH_SIGNAL = 1


class Workers:
    """A process for each thread that reads, because TorchIO draws from a generator of the process.

    A thread writes its patch into memory that it shares with a process, and waits until that has
    transformed it.

    Args:
        count: of the processes.
        transforms: by name.
        voxels: of the largest patch.
        limit: seconds that one transform may take for one patch.
    """

    def __init__(
        self, count: int, transforms: Mapping[str, Any], voxels: int, limit: float
    ) -> None:
        self._all: list[_Worker] = []
        self._free: SimpleQueue[_Worker] = SimpleQueue()
        for _ in range(count):
            worker = _Worker(transforms, voxels, limit, [one.pipe for one in self._all])
            self._all.append(worker)
            self._free.put(worker)
        # The last to register is the first to run: multiprocessing would send SIGTERM and wait.
        atexit.register(self.close)

    def __call__(
        self, image: Array, label: Array, available: Subset, seed: int, place: str
    ) -> None:
        """Transform a patch in place; a worker that has failed is given no earlier one again."""
        worker = self._free.get()
        try:
            worker.transform(image, label, available, seed, place)
        finally:
            self._free.put(worker)

    def close(self) -> None:
        """End all processes at once; who waits for one is told that it has ended."""
        atexit.unregister(self.close)
        for worker in self._all:
            worker.process.kill()
        for worker in self._all:
            worker.process.join()


class _Worker:
    def __init__(
        self, transforms: Mapping[str, Any], voxels: int, limit: float, others: Sequence[Connection]
    ) -> None:
        self._transforms, self._limit = transforms, limit
        self._memory = _Memory(voxels)
        self.pipe, theirs = Pipe()
        # Forked: what is shared need not have a name, and a transform need not be pickled.
        self.process = get_context("fork").Process(
            target=_serve,
            args=(theirs, [self.pipe, *others], self._memory, transforms),
            daemon=True,
        )
        self.process.start()
        theirs.close()

    def transform(
        self, image: Array, label: Array, available: Subset, seed: int, place: str
    ) -> None:
        shared = self._memory.arrays(label.shape)
        for mine, given in zip(shared, (image, label), strict=True):
            mine[...] = given
        try:
            self.pipe.send((label.shape, available, seed, place))
            failure = self._answer(place)
        except (EOFError, OSError):
            raise ConfigError(f"{self._running()} {self._end()} on {place}") from None
        if failure:
            raise ConfigError(failure)
        for mine, given in zip(shared, (image, label), strict=True):
            given[...] = mine

    def _answer(self, place: str) -> str:
        """Wait for the end of the transforms, for each of them no longer than the limit."""
        waited, at = 0.0, -1
        while not self.pipe.poll(_LOOK):
            # Looks are counted, not the time: who was stopped, as by Ctrl-Z, has not waited.
            waited, at = (waited + _LOOK if at == self._memory.at else 0.0), self._memory.at
            if waited >= self._limit:
                self.process.kill()
                return (
                    f"{self._running()} did not return within {self._limit:g} s on {place}; allow"
                    " more by data.seconds_per_transform, or take it out by null"
                )
        return str(self.pipe.recv())

    def _running(self) -> str:
        name = list(self._transforms)[self._memory.at]
        return named(name, self._transforms[name])

    def _end(self) -> str:
        self.process.join(1)
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"ended its process with status {code}"
        memory = ", as the system does when memory runs out," if code == -signal.SIGKILL else ""
        return f"ended its process by {signal.Signals(-code).name}{memory}"


class _Memory:
    """What both sides see: which transform runs, image and label."""

    def __init__(self, voxels: int) -> None:
        self._bytes = mmap.mmap(-1, 8 + voxels * (2 * len(MODALITIES) + 1))
        self._at = np.frombuffer(self._bytes, np.int64, 1)

    @property
    def at(self) -> int:
        return int(self._at[0])

    @at.setter
    def at(self, number: int) -> None:
        self._at[0] = number

    def arrays(self, shape: Sequence[int]) -> tuple[Array, Array]:
        count, channels = prod(shape), len(MODALITIES)
        image = np.frombuffer(self._bytes, np.float16, channels * count, 8)
        label = np.frombuffer(self._bytes, np.uint8, count, 8 + image.nbytes)
        return image.reshape(channels, *shape), label.reshape(shape)


def _serve(
    pipe: Connection, others: Sequence[Connection], memory: _Memory, transforms: Mapping[str, Any]
) -> None:
    """Transform what comes, until nobody is there any more."""
    # Schedulers and sweeps send signals to every process of a training, which needs its workers
    # until it has saved its state.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        # Also in the middle of a transform that never returns.
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, int(signal.SIGKILL))
    for other in others:
        other.close()
    # Threads of the training were not forked along; whoever waits for them waits for ever.
    torch.set_num_threads(1)
    import_module("SimpleITK").ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    places = {name: number for number, name in enumerate(transforms)}

    def begin(name: str) -> None:
        memory.at = places[name]

    with suppress(EOFError, OSError):
        while True:
            shape, available, seed, place = pipe.recv()
            failure = ""
            try:
                transform_patch(transforms, *memory.arrays(shape), available, seed, place, begin)
            except BaseException as error:
                failure = " ".join(str(error).split()) or type(error).__name__
            pipe.send(failure)
