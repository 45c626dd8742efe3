"""What the machine can hold: processes, readers, batches read ahead, weights."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from torch.nn.modules.module import register_module_parameter_registration_hook

from bts_lightning.errors import ConfigError
from bts_lightning.memory import is_out_of_memory
from bts_lightning.runs.devices import cores

# On few cores too, many readers are of use where the disk is far away.
_LEAST_OF_MOST_WORKERS = 64


def check_devices(trainer: Mapping[str, Any]) -> None:
    """Refuse more processes than the machine can hold: Lightning would start a thousand at once.

    Args:
        trainer: arguments of the trainer.
    """
    held = devices_here(trainer)
    if "num_nodes" in held:
        raise ConfigError(
            f"trainer.num_nodes is {trainer['num_nodes']}, but neither Slurm nor torchrun has "
            "started this process, so no other would come; docs/cluster.md says how"
        )
    if there := held.get("devices"):
        what = "cores" if _on_cpu(trainer) else "GPUs"
        raise ConfigError(
            f"trainer.devices is {trainer['devices']}, and there are {there} {what} here; give "
            f"{there} or fewer"
        )


def devices_here(trainer: Mapping[str, Any]) -> dict[str, int]:
    """Give what this machine has in place of nodes or devices of which the trainer asks for more.

    Args:
        trainer: arguments of the trainer.
    """
    # Slurm or torchrun has started this process, or the first process has, which was asked. In an
    # interactive job of Slurm's, Lightning starts them itself.
    if "LOCAL_RANK" in os.environ or SLURMEnvironment.detect():
        return {}
    held = {}
    if (trainer.get("num_nodes") or 1) > 1 and "NODE_RANK" not in os.environ:
        held["num_nodes"] = 1
    wanted = str(trainer.get("devices"))
    there = cores() if _on_cpu(trainer) else torch.cuda.device_count()
    # What is no number, as `auto` or a list, Lightning looks up by itself.
    if wanted.isdecimal() and int(wanted) > there:
        held["devices"] = there
    return held


def _on_cpu(trainer: Mapping[str, Any]) -> bool:
    return trainer.get("accelerator") == "cpu" or not torch.cuda.is_available()


@contextmanager
def within_memory(what: str) -> Iterator[None]:
    """Refuse a network that this machine cannot hold; the system would kill whoever builds it."""
    weights = 0

    def count(module: torch.nn.Module, name: str, parameter: Any) -> None:
        nonlocal weights
        # Counted before it is filled; a training has the gradients as well.
        weights += 2 * parameter.nbytes if parameter is not None else 0
        if weights > _installed():
            raise MemoryError

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) and "overflow" not in str(error):
            raise
        raise ConfigError(
            f"{what}: the weights do not fit into the {_installed() / 2**30:.0f} GiB of this "
            "machine; make it smaller, as with net.width"
        ) from error
    finally:
        hook.remove()


def check_load(data: Any) -> None:
    """Refuse readers and batches read ahead that this machine cannot hold.

    Args:
        data: a data module; what it does not have is not looked at.
    """
    most = max(_LEAST_OF_MOST_WORKERS, 8 * cores())
    if getattr(data, "workers", 0) > most:
        raise ConfigError(f"data.workers is {data.workers}; this machine takes up to {most}")
    if not all(hasattr(data, name) for name in ("patch", "batch_size", "prefetch")):
        return
    # Four images in single precision, and the label.
    needed = (1 + data.prefetch) * data.batch_size * prod(data.patch) * (4 * 4 + 1)
    if needed > _installed():
        raise ConfigError(
            f"data.prefetch={data.prefetch} batches of data.batch_size={data.batch_size} patches "
            f"take {needed / 2**30:.0f} GiB, and this machine has {_installed() / 2**30:.0f}; "
            "lower one of them, or data.patch"
        )


def _installed() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
