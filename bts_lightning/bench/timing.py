"""Time contenders in turns, so that a busy minute of the machine hits all of them alike."""

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch


@dataclass
class Timing:
    """What was measured of one contender.

    Attributes:
        seconds: one number a round.
        units: how much of the work was done; a share below 1 was scaled up to the whole.
    """

    seconds: list[float] = field(default_factory=list)
    units: float = 1.0

    @property
    def median(self) -> float:
        """Give the seconds of a usual round."""
        return float(np.median(self.seconds))

    @property
    def spread(self) -> float:
        """Give half the distance between the slowest and the fastest round, over the median."""
        return (max(self.seconds) - min(self.seconds)) / 2 / self.median


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
    for name, work in contenders.items():
        for _ in range(0 if name in fewer else warm):
            work()
    timings = {name: Timing() for name in contenders}
    for turn in range(rounds):
        for name, work in contenders.items():
            if turn < fewer.get(name, rounds):
                timings[name].seconds.append(seconds_of(work))
    return timings


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
