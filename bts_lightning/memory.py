"""Memory of tensors: let a CPU keep what a step frees, and know when there is no more."""

import ctypes
import sys
from typing import Any

import torch
from omegaconf import DictConfig

# Numbers of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER = 2**31 - 1
# Larger blocks are given back: kept, they tear holes of gigabytes into the heap.
_UP_TO = 2**28
# What PyTorch, oneDNN and cuDNN say when there is no memory, where torch has no class for it.
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")


def keep_freed_memory() -> None:
    """Tell the C library not to give large blocks back to the system after each use.

    By default each large tensor is mapped, zeroed page by page and unmapped again: 40 % of the CPU
    time of a small training step (docs/training.md). Does nothing where there is no glibc.
    """
    mallopt = _glibc("mallopt")
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _UP_TO)
        mallopt(_TRIM_THRESHOLD, _NEVER)


def give_back_freed_memory() -> None:
    """Give to the system what was freed and kept, before work that needs other sizes."""
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _glibc(name: str) -> Any:
    """Find a function of the C library; None where there is no glibc."""
    if sys.platform != "linux":
        return None
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None


def is_out_of_memory(error: Exception) -> bool:
    """Know the end of memory, of a device or of the machine; torch has a class for some of it."""
    has_class = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return has_class or any(sign in str(error) for sign in _OUT_OF_MEMORY)


def advise_on_memory(config: DictConfig) -> str:
    """Say what to lower when memory ran out, with the numbers of this run."""
    data, trainer = config.data, config.trainer
    numbers = ""
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        peak = torch.cuda.max_memory_allocated()
        numbers = (
            f" (peak {peak / 2**30:.1f} GiB of {total / 2**30:.1f} GiB, {free / 2**30:.1f} free)"
        )
    tips = []
    if str(trainer.get("precision", "32-true")) in ("32", "32-true", "None"):
        tips.append("trainer.precision=bf16-mixed (about half)")
    batch = data.get("batch_size", 1)
    if batch > 1:
        half = batch // 2
        steps = trainer.get("accumulate_grad_batches", 1) * (batch // half)
        tips.append(f"data.batch_size={half} with trainer.accumulate_grad_batches={steps}")
    patch = data.get("patch", 128)
    if isinstance(patch, int) and patch > 64:
        tips.append(f"data.patch={patch - 32} (×{((patch - 32) / patch) ** 3:.2f})")
    return f"out of memory{numbers}; lower one of: {'; '.join(tips) or 'net.width'}"
