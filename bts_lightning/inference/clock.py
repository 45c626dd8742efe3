"""Where the time of an inference goes."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch


@dataclass
class Clock:
    """Add up seconds by stage; on a GPU each stage waits until its kernels are done.

    Example:
        >>> clock = Clock()
        >>> with clock.stage("read"):
        ...     pass
        >>> list(clock.seconds)
        ['read']
    """

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what happens inside as this stage."""
        _finish_kernels()
        began = time.perf_counter()
        try:
            yield
        finally:
            _finish_kernels()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


_OFF = nullcontext()


def stage(clock: Clock | None, name: str) -> AbstractContextManager[None]:
    """Time a stage if there is a clock; without one it costs nothing."""
    return _OFF if clock is None else clock.stage(name)


def _finish_kernels() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
