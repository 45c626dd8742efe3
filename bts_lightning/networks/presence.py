"""Work for the modalities that are there: which rows have them, and sums over those."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from bts_lightning.modalities import COMPLETE, MODALITIES, on_host
from bts_lightning.networks.backbone import over, recorded

# Rows of a batch: all, some by number, or unknown to Python.
Rows = slice | Tensor | None
ALL = slice(None)
# Values of one modality at one level, say 32 channels of 50³; with less a GPU is not busy.
LARGE = 2**22


class Presence:
    """Say, level by level, which rows of a batch have which modality.

    Python knows the flags of a training batch (`tell`); of others it learns them by a transfer,
    which waits for a GPU. A compiled graph must not depend on them: there nothing is known,
    everything is computed, and what is absent is selected away.

    Attributes:
        present: per level B×M bool, on the device.
    """

    def __init__(self, present: Sequence[Tensor], *, read: bool) -> None:
        self.present = tuple(present)
        self.known: Tensor | None = None  # L B M
        if read and not torch.compiler.is_compiling() and not self.present[0].is_meta:
            self.known = torch.stack([on_host(flags) for flags in self.present])

    @property
    def batch(self) -> int:
        """Count the rows."""
        return self.present[0].shape[0]

    def row(self, i: int) -> "Presence":
        """Give one row on its own."""
        one = Presence([present[i : i + 1] for present in self.present], read=False)
        one.known = None if self.known is None else self.known[:, i : i + 1]
        return one

    def rows(self, m: int, level: int = 0) -> Rows:
        """Give the rows that have a modality."""
        if self.known is None:
            return None
        flags = self.known[level, :, m]
        if flags.all():
            return ALL
        return flags.nonzero().flatten().to(self.present[level].device, non_blocking=True)

    def keep(self, m: int, level: int = 0) -> Tensor:
        """Give the flags of a modality, B×1×1×1×1."""
        return self.present[level][:, m].view(-1, 1, 1, 1, 1)

    def own(self, x: Tensor, m: int) -> Tensor:
        """Give what `rows` names of a modality's features, zero where it is absent."""
        rows = self.rows(m)
        return x if isinstance(rows, slice) else pick(torch.where(self.keep(m), x, 0), rows)

    def average(self, parts: Sequence[Tensor], level: int = 0) -> Tensor:
        """Average one tensor per modality over those present in each row."""
        total: Tensor | None = None
        # One modality at a time: stacking selected copies of all would double the peak memory.
        for m, part in enumerate(parts):
            rows = self.rows(m, level)
            if is_nobody(rows):
                continue
            kept = part if rows == ALL else torch.where(self.keep(m, level), part, 0)
            total = kept if total is None else total + kept
        assert total is not None
        return total / over(self.present[level].sum(dim=1), total)


def is_nobody(rows: Rows) -> bool:
    """Say whether no row is meant."""
    return isinstance(rows, Tensor) and len(rows) == 0


def lacking(present: Sequence[Tensor]) -> list[bool]:
    """Say of each modality whether some sample lacks it at some level, B×M a level.

    Yes where nothing is known. Tensors without content lack nothing: they count what a complete
    image costs.
    """
    if present[0].is_meta:
        return [False] * len(MODALITIES)
    flags = Presence(present, read=True).known
    if flags is None:
        return [True] * len(MODALITIES)
    lacks: list[bool] = (~flags.flatten(0, 1).all(dim=0)).tolist()
    return lacks


def pick(x: Tensor, rows: Rows) -> Tensor:
    """Take some rows of a batch; all, where they are not known."""
    return x[rows] if isinstance(rows, Tensor) else x


def spread(x: Tensor, rows: Rows, batch: int, value: float = 0.0) -> Tensor:
    """Put what was computed for some rows back into a batch, with `value` in all others."""
    if not isinstance(rows, Tensor):
        return x
    return x.new_full((batch, *x.shape[1:]), value).index_copy(0, rows, x)


def add_rows(total: Tensor, rows: Rows, x: Tensor) -> Tensor:
    """Add to some rows of a batch, in place."""
    return total.index_add_(0, rows, x) if isinstance(rows, Tensor) else total.add_(x)


def is_worth_sharing(levels: Sequence[Tensor]) -> bool:
    """Say whether subsets of these features are better decoded one after the other.

    That shares work between the subsets of a single case. On a GPU small features are faster in one
    batch, and tensors without content do not tell which modalities are there.
    """
    finest = levels[0]
    small = finest.is_cuda and finest[0, 0].numel() < LARGE
    return len(finest) == 1 and not finest.is_meta and not small


def nothing_of(module: nn.Module) -> Tensor:
    """Give a zero that depends on every parameter, so that a skipped module keeps its gradients.

    Data-parallel training waits for a gradient of each parameter in each step.
    """
    return torch.stack([parameter.sum() for parameter in module.parameters()]).sum() * 0


def full_precision(x: Tensor) -> Tensor:
    """Give half-precision values as single, and others as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Switch automatic casts off on the device of `x`; meta tensors have none."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def encode_each(encoders: nn.ModuleList, image: Tensor) -> tuple[Tensor, ...]:
    """Give each modality to its own encoder and stack the results, per level B×4×C×D×H×W."""
    return stack_pyramids(lambda m: encoders[m](image[:, m : m + 1]))


def encode_present(
    encoders: nn.ModuleList, image: Tensor, present: Tensor, *, skip: bool = True
) -> tuple[Tensor, ...]:
    """Do the same, but run each encoder for those samples alone that have its modality."""
    presence = Presence([present], read=skip)

    def encode(m: int) -> list[Tensor] | None:
        rows = presence.rows(m)
        if is_nobody(rows):
            return None
        return [spread(x, rows, len(image)) for x in encoders[m](pick(image[:, m : m + 1], rows))]

    if not encoders.training:
        return stack_pyramids(encode)
    made = [encode(m) for m in range(len(encoders))]
    some = next(levels for levels in made if levels is not None)
    for m, encoder in enumerate(encoders):
        if made[m] is None:
            made[m] = [torch.zeros_like(x) + nothing_of(encoder) for x in some]
    return stack_pyramids(made.__getitem__)


def stack_pyramids(encode: Callable[[int], Sequence[Tensor] | None]) -> tuple[Tensor, ...]:
    """Stack the levels of all modalities, per level B×M×C×D×H×W, zero where there are none.

    Without gradients each pyramid goes to its place as it is made: at full size, all of them beside
    their copies would take gigabytes.

    Args:
        encode: gives the levels of a modality, or None.
    """
    modalities = range(len(MODALITIES))
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        shown = recorded[-1] if recorded else COMPLETE
        made = [encode(m) if shown[m] else None for m in modalities]
        some = next(levels for levels in made if levels is not None)
        nothing = [torch.zeros_like(x) for x in some]
        full = (nothing if levels is None else levels for levels in made)
        return tuple(_stack(level) for level in zip(*full, strict=True))
    stacked: list[Tensor] = []
    for m in modalities:
        _fill(stacked, m, encode(m))
    return tuple(stacked)


def _fill(stacked: list[Tensor], m: int, levels: Sequence[Tensor] | None) -> None:
    if levels is None:
        return
    if not stacked:
        stacked += [_room_for(x) for x in levels]
    for room, x in zip(stacked, levels, strict=True):
        room[:, m] = x


def _stack(parts: Sequence[Tensor]) -> Tensor:
    if not _is_channels_last(parts[0]):
        return torch.stack(list(parts), dim=1)
    # A plain stack would undo channels_last_3d, and each convolution would restore it.
    return torch.stack([part.movedim(1, -1) for part in parts], dim=1).movedim(-1, 2)


def _room_for(x: Tensor) -> Tensor:
    """Give zeros for four modalities like this one, in its memory format."""
    batch, *size = x.movedim(1, -1).shape if _is_channels_last(x) else x.shape
    room = x.new_zeros(batch, len(MODALITIES), *size)
    return room.movedim(-1, 2) if _is_channels_last(x) else room


def _is_channels_last(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last_3d)
