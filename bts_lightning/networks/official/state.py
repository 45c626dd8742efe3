"""Turn an official state into ours, or say in one line why it is none."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

from bts_lightning.errors import DataError
from bts_lightning.networks.official.table import Table

# What wrappers put before every name: DataParallel, and the loader of AMoE-BTS.
PREFIXES = ("module.", "backbone.")


@dataclass(frozen=True)
class Taken:
    """Parameters of ours from an official state, and how many official ones that took.

    Attributes:
        ours: the values by our names.
        taken: official names that were used, and their size in all.
        skipped: official names without effect on the segmentation, and their size.
    """

    ours: dict[str, Tensor]
    taken: tuple[int, int]
    skipped: tuple[int, int]


def learned(module: nn.Module) -> dict[str, Tensor]:
    """Give what training has made: parameters, and statistics of batches where there are any."""
    return {name: x for name, x in module.state_dict().items() if x.is_floating_point()}


def bare(names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take away what stands before most names."""
    state = dict(names)
    while prefix := next(
        (p for p in PREFIXES if 2 * sum(n.startswith(p) for n in state) > len(state)), None
    ):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def translate(official: Mapping[str, Tensor], ours: Mapping[str, Tensor], table: Table) -> Taken:
    """Give our parameters from a bare official state.

    Args:
        ours: what is learned of the network, or of the task if the table says so, for the shapes.
    """
    places = table.places(ours)
    if unknown := ours.keys() - places.keys():
        raise DataError(
            f"{table.network} has no {sorted(unknown)[0]}, so its weights cannot be those of this "
            "configuration; take back the overrides of net"
        )
    wanted = {place.name: place.shape(ours[name].shape) for name, place in places.items()}
    missing = [name for name in wanted if name not in official]
    rest = [name for name in official if name not in wanted]
    strange = [name for name in rest if not any(fnmatchcase(name, u) for u in table.unused)]
    reshaped = [
        n for n, s in wanted.items() if n in official and _slim(official[n].shape) != _slim(s)
    ]
    faults = []
    if missing:
        faults.append(f"{len(missing)} of {len(wanted)} parameters are missing, as {missing[0]}")
    if strange:
        faults.append(f"{len(strange)} are unknown, as {strange[0]}")
    if reshaped:
        name = reshaped[0]
        faults.append(
            f"{len(reshaped)} have another shape, as {name}: {_show(official[name].shape)} for "
            f"{_show(wanted[name])}"
        )
    if faults:
        raise DataError(f"no checkpoint of {table.network}: {'; '.join(faults)}")
    for name in wanted:
        value = official[name]
        if not value.is_floating_point():
            raise DataError(f"{name} holds {str(value.dtype).removeprefix('torch.')} and no floats")
        if not value.is_meta and not value.isfinite().all():
            count = int((~value.isfinite()).sum())
            raise DataError(f"{name} holds {count} values that are NaN or infinite; it is broken")
    made = {
        name: place.take(official[place.name]).reshape(ours[name].shape)
        for name, place in places.items()
    }
    return Taken(made, _size(official, wanted), _size(official, rest))


def _slim(shape: tuple[int, ...]) -> list[int]:
    # A convolution of one voxel is a linear layer.
    return [size for size in shape if size != 1]


def _show(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a number"


def _size(state: Mapping[str, Tensor], names: Mapping[str, object] | list[str]) -> tuple[int, int]:
    return len(names), sum(state[name].numel() for name in names)
