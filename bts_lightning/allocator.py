"""Let a CPU keep the memory that a step frees, because the next one asks for the same."""

import ctypes
import sys

# Numbers of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER = 2**31 - 1
_UP_TO = 2**28


def keep_freed_memory() -> None:
    """Tell the C library not to give large blocks back to the system after each use.

    By default each large tensor is mapped, zeroed page by page and unmapped again: 40 % of the CPU
    time of a small training step (docs/training.md). Does nothing where there is no glibc.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_MMAP_THRESHOLD, _UP_TO)
    mallopt(_TRIM_THRESHOLD, _NEVER)
