"""What a benchmark ran on, without the machine's name."""

import argparse
import os
import platform
from collections.abc import Iterable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from bts_lightning.bench.peers import not_installed
from bts_lightning.bench.result import Result

# Whatever is measured, these matter.
ALWAYS = ("bts_lightning", "torch", "numpy", "numba")


def start(
    family: str,
    args: argparse.Namespace,
    *,
    packages: Iterable[str] = (),
    settings: dict[str, Any] | None = None,
) -> Result:
    """Begin a result with all that must be known to judge and repeat it."""
    return Result(
        family=family,
        device=args.device.type,
        command=args.command,
        machine=describe(args.device),
        versions=installed([*ALWAYS, *packages]),
        settings=settings or {},
        absent=not_installed(),
        day=date.today().isoformat(),
    )


def describe(device: torch.device) -> dict[str, str]:
    """Give processor, memory, accelerator, system, and how busy the machine was."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {
        "processor": _processor(),
        "cores": f"{cores}, torch uses {torch.get_num_threads()}",
        "memory": f"{_memory() / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "load": f"{os.getloadavg()[0]:.1f} when it began",
    }
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        facts["gpu"] = f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    return facts


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Give the versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    if not file.exists():
        return platform.processor() or "unknown"
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
