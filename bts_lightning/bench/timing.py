"""Time contenders in turns, so that a busy minute of the machine hits all of them alike."""

import gc
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from bts_lightning.memory import is_out_of_memory

OUT_OF_MEMORY = "out of memory"
# Compilers say pages; a cell of a table has no room for them.
LONGEST = 160


@dataclass
class Timing:
    """What was measured of one contender.

    Attributes:
        values: one a round: seconds, or patches a second.
        failure: why there are none.
    """

    values: list[float] = field(default_factory=list)
    failure: str = ""

    @property
    def median(self) -> float:
        """Give the value of a usual round."""
        return float(np.median(self.values)) if self.values else math.nan

    @property
    def spread(self) -> str | None:
        """Give half the distance between the largest and the least, in per cent of the median."""
        if len(self.values) < 2:
            return None
        return f"{50 * (max(self.values) - min(self.values)) / self.median:.0f} %"

    def add(self, name: str, measure: Callable[[], float], *, keep: bool = True) -> None:
        """Measure once more. A peer that fails is not asked again; ours must not fail."""
        if self.failure:
            return
        try:
            value = measure()
        except Exception as error:
            if name.startswith("ours"):
                raise
            self.failure = reason(error)
            return
        if keep:
            self.values.append(value)


def take_turns(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int = 3,
    *,
    warm: int = 1,
    fewer: Mapping[str, int] | None = None,
) -> dict[str, Timing]:
    """Time each contender once a round, in the order given.

    Args:
        contenders: what to call, by name.
        rounds: how often.
        warm: calls before the first round, which compile and fill caches.
        fewer: other numbers of rounds for slow ones; these are not warmed either.
    """
    fewer = fewer or {}
    timings = {name: Timing() for name in contenders}
    for turn in range(-warm, rounds):
        for name, work in contenders.items():
            first = 0 if name in fewer else -warm
            if first <= turn < fewer.get(name, rounds):
                timings[name].add(name, partial(seconds_of, work), keep=turn >= 0)
    return timings


def failures(timings: Mapping[str, Timing]) -> list[str]:
    """Say which contenders could not be measured, and why, for the notes of a table."""
    failed = [f"{name} ({timing.failure})" for name, timing in timings.items() if timing.failure]
    return [f"Not measured: {'; '.join(failed)}."] if failed else []


def seconds_of(work: Callable[[], object]) -> float:
    """Time one call, kernels included, without the garbage of the call before."""
    gc.collect()
    synchronise()
    began = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - began


def synchronise() -> None:
    """Wait for the device, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def free() -> None:
    """Give back what was measured before."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def reason(error: Exception) -> str:
    """Say in a line why something could not be measured."""
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    return " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST]
