"""Which devices a process takes, and which the agents of a sweep share."""

import os

import torch

from bts_lightning.errors import UserError


def check_accelerator(name: str | None, key: str) -> None:
    """Say in our words that there is no GPU, before anything is built for it."""
    is_there = torch.cuda.is_available() or (name == "gpu" and torch.backends.mps.is_available())
    if name in ("gpu", "cuda") and not is_there:
        raise UserError(
            f"{key}={name}, but torch {torch.__version__} sees no GPU here; set {key}=cpu, or look "
            "at the driver (nvidia-smi) and at the build of torch"
        )


def chosen_device(name: str | None) -> torch.device:
    """Read what `--device` says, or name what there is to choose from; else take a GPU if any."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.lower().partition(":")
    kind = "cuda" if kind == "gpu" else kind
    check_accelerator(kind, key="--device")
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": torch.mps.device_count()}
    if (number and not number.isdecimal()) or int(number or 0) >= there.get(kind, 0):
        choices = [f"{k}:{i}" if i else k for k, count in there.items() for i in range(count)]
        raise UserError(f"--device {name} is not here; choose {', '.join(choices)}")
    return torch.device(kind, int(number)) if number else torch.device(kind)


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_devices(agents: int | None) -> list[dict[str, str]]:
    """Give what each agent needs in its environment: the GPUs that it sees, and how many threads.

    Without a number there is one agent a GPU. Fewer agents than GPUs get several each, more share.
    A single agent has all, and a number of threads that the user has set is left alone.
    """
    gpus = [] if agents == 1 else _gpus()
    agents = agents or len(gpus) or 1
    shares = [gpus[i::agents] or gpus[i % len(gpus) :][:1] if gpus else [] for i in range(agents)]
    has_all = agents == 1 or "OMP_NUM_THREADS" in os.environ
    threads = {} if has_all else {"OMP_NUM_THREADS": str(max(1, cores() // agents))}
    return [
        ({"CUDA_VISIBLE_DEVICES": ",".join(share)} if share else {}) | threads for share in shares
    ]


def _gpus() -> list[str]:
    """List the GPUs as CUDA_VISIBLE_DEVICES names them."""
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return [part.strip() for part in visible.split(",")]
    return [str(i) for i in range(torch.cuda.device_count())]
