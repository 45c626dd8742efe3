"""Training batches: threads read patches straight into them, a few batches ahead."""

import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from numpy.typing import NDArray
from torch import Tensor

from bts_lightning.data.samples import PatchDataset, Sample
from bts_lightning.data.transformed import transform_patch
from bts_lightning.data.workers import Workers
from bts_lightning.errors import ConfigError
from bts_lightning.modalities import MODALITIES, tell

Batch = dict[str, Any]
Array = NDArray[Any]
Around = dict[str, Any]  # image, label and where in them the patch lies


class EpochCounter:
    """What Lightning takes for the sampler: it is told the epoch."""

    def __init__(self) -> None:
        self.epoch = 0
        self.given = 0

    def set_epoch(self, epoch: int) -> None:
        """Begin another epoch; telling the same one again changes nothing."""
        if epoch != self.epoch:
            self.epoch, self.given = epoch, 0


class PatchLoader:
    """Fill batches by threads, a few ahead, each patch copied once from memory map to batch.

    The same samples come for any number of workers, and the batches of all ranks, put together in
    rank order, are those of one process with the larger batch. TorchIO transforms draw from torch's
    global generator, which threads share, so each thread has them run by a process of its own.

    Args:
        patches: its length must be a whole number of steps.
        batch_size: samples a step on this rank.
        workers: threads; 0 reads in the caller's thread.
        prefetch: batches read ahead.
        pin: page-locked batches, for a CUDA device.
        frozen: show the first epoch again and again, to overfit.
        finished: tells how many batches of the running epoch are really done; a checkpoint written
            in the middle of a step must not skip the batch that was handed out for it.
        seconds_per_transform: after them a TorchIO transform that has not returned ends all.
        augment: writes a sample over float32 arrays, augmented; else they come in float16, as they
            are read, with what lies `around` them.

    Attributes:
        waited: seconds that whoever asked for batches has waited for them.
    """

    def __init__(
        self,
        patches: PatchDataset,
        *,
        batch_size: int = 1,
        workers: int = 2,
        prefetch: int = 2,
        rank: int = 0,
        world: int = 1,
        pin: bool = False,
        frozen: bool = False,
        finished: Callable[[], int] | None = None,
        seconds_per_transform: float = 30.0,
        augment: Callable[[Sample, Array, Array], None] | None = None,
    ) -> None:
        if len(patches) % (batch_size * world):
            fits = whole_steps(len(patches), batch_size * world)
            raise ValueError(
                f"{len(patches)} samples are no whole number of steps of {batch_size} samples on"
                f" {world} ranks; {fits} would be"
            )
        # Not `dataset`: Lightning would rebuild a loader that has one.
        self.patches = patches
        self.sampler = EpochCounter()
        self.batch_size, self.workers, self.prefetch = batch_size, workers, prefetch
        self.rank, self.world = rank, world
        self.pin, self.frozen = pin, frozen
        self._finished, self._augment = finished, augment
        self._limit = seconds_per_transform
        self._float16, self._uint8 = _Memory(np.float16, pin=pin), _Memory(np.uint8, pin=pin)
        self._float32 = _Memory(np.float32, pin=pin)
        self.waited = 0.0
        self._resume = (0, 0)

    def __len__(self) -> int:
        return len(self.patches) // (self.batch_size * self.world)

    def __iter__(self) -> Iterator[Batch]:
        # A generator, so nothing happens before the first batch is asked for: Lightning makes the
        # iterator first and tells the epoch afterwards.
        epoch, first = self._resume
        self._resume = (0, 0)
        self.sampler.given = first if epoch == self.sampler.epoch else 0
        batches = self._read(0 if self.frozen else self.sampler.epoch, self.sampler.given)
        while True:
            asked = time.monotonic()
            batch = next(batches, None)
            self.waited += time.monotonic() - asked
            if batch is None:
                return
            self.sampler.given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Tell where the epoch stands, for a checkpoint; the same on every rank."""
        given = self.sampler.given
        done = given if self._finished is None else min(given, self._finished())
        step = self.batch_size * self.world
        return {"epoch": self.sampler.epoch, "batch": done, "step": step, "steps": len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on with the batch after the last finished one, if its epoch is the one told next."""
        step = self.batch_size * self.world
        within = 0 < state["batch"] < state["steps"]
        if within and (state["step"], state["steps"]) != (step, len(self)):
            raise ConfigError(
                f"the checkpoint stands at batch {state['batch']} of an epoch of {state['steps']}"
                f" steps of {state['step']} samples, this run has {len(self)} steps of {step}; keep"
                " batch size × ranks and the length of the epoch, or resume from an epoch's end"
            )
        self._resume = (state["epoch"], state["batch"])

    def batch(self, epoch: int, step: int) -> Batch:
        """Read one batch here and now."""
        transforms = self.patches.transforms
        batch, reads = self._begun(
            epoch, step, partial(transform_patch, transforms) if transforms else None
        )
        for read in reads:
            read()
        return batch

    def _read(self, epoch: int, first: int) -> Iterator[Batch]:
        steps = range(first, len(self))
        if self.workers == 0:
            yield from (self.batch(epoch, step) for step in steps)
            return
        ahead = max(self.prefetch, -(-self.workers // self.batch_size))
        waiting: deque[tuple[Batch, list[Future[None]]]] = deque()
        with ExitStack() as stack:
            transform = None
            if self.patches.transforms:
                transform = Workers(
                    self.workers, self.patches.transforms, self.patches.largest(), self._limit
                )
            pool = ThreadPoolExecutor(self.workers, thread_name_prefix="patches")
            stack.callback(pool.shutdown, cancel_futures=True)
            if transform:
                stack.callback(transform.close)  # first, or the threads would wait for them
            for step in steps:
                # Cases are opened in this thread: NumPy reads a header as Python source, and Python
                # 3.11 cannot parse in two threads at once (python/cpython#106905).
                batch, reads = self._begun(epoch, step, transform)
                waiting.append((batch, [pool.submit(read) for read in reads]))
                if len(waiting) > ahead:
                    yield _read(*waiting.popleft())
            while waiting:
                yield _read(*waiting.popleft())

    def _begun(
        self, epoch: int, step: int, transform: Callable[..., None] | None
    ) -> tuple[Batch, list[Callable[[], None]]]:
        """Decide a batch, and what is left to do for each sample: to read it."""
        first = (step * self.world + self.rank) * self.batch_size
        samples = [self.patches.draw(epoch, first + i) for i in range(self.batch_size)]
        size, channels = self.patches.patch, len(MODALITIES)
        numbers = self._float32 if self._augment else self._float16
        image = numbers.take((len(samples), channels, *size))
        label = self._uint8.take((len(samples), *size))
        if self._augment:
            rows = zip(samples, image.numpy(), label.numpy(), strict=True)
            return _as_batch(samples, image, label), [partial(self._augment, *row) for row in rows]
        around: list[Around | None] = []
        reads: list[Callable[[], None]] = []
        for sample, row, truth in zip(samples, image.numpy(), label.numpy(), strict=True):
            box, arrays = sample.around, None
            if box is None:
                around.append(None)
            else:
                wide = self._float16.take((channels, *box.size)), self._uint8.take(box.size)
                around.append({"image": wide[0], "label": wide[1], "centre": box.centre})
                arrays = wide[0].numpy(), wide[1].numpy()
            reads.append(partial(sample.fill, row, truth, arrays, transform))
        return {**_as_batch(samples, image, label), "around": around}, reads


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move what is a tensor; the flags of a sample stay known to the host."""
    moved: Batch = move_data_to_device(batch, device)
    for name in ("present", "available"):
        if name in batch:
            tell(moved[name], batch[name])
    return moved


def whole_steps(samples: int, step: int) -> int:
    """Round the samples of an epoch up to whole steps of all ranks together."""
    return -(-samples // step) * step


def _as_batch(samples: list[Sample], image: Tensor, label: Tensor) -> Batch:
    return {
        "image": image,
        "label": label,
        "present": torch.tensor([sample.present for sample in samples]),
        "available": torch.tensor([sample.available for sample in samples]),
        "place": torch.tensor([sample.place for sample in samples]),
        "case": [sample.case for sample in samples],
        "seed": [sample.seed for sample in samples],
    }


def _read(batch: Batch, reads: list[Future[None]]) -> Batch:
    for read in reads:
        read.result()
    return batch


class _Memory:
    """Memory for batches, used again once nobody holds a tensor of it, in sizes of powers of two.

    Touching 33 MB of fresh pages takes longer than copying two patches into old ones: 31 against
    2 ms. Page-locked memory torch's own allocator reuses, after the device has read it.
    """

    def __init__(self, dtype: type[np.generic], *, pin: bool) -> None:
        self.dtype, self.pin = dtype, pin
        self._free: dict[int, list[NDArray[Any]]] = {}

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """Give a tensor with anything in it."""
        if self.pin:
            kind = torch.from_numpy(np.empty(0, self.dtype)).dtype
            return torch.empty(shape, dtype=kind, pin_memory=True)
        count = prod(shape)
        room = 1 << (count - 1).bit_length()  # pages that nobody touches take no memory
        free = self._free.setdefault(room, [])
        memory = free.pop() if free else np.empty(room, self.dtype)
        # The tensor holds this very view, and so does whatever is made from the tensor.
        view = memory[:count].reshape(shape)
        weakref.finalize(view, free.append, memory).atexit = False
        return torch.from_numpy(view)
