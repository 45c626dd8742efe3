"""Learning-rate schedules of the published recipes, in closed form and stepped once an epoch."""

import math
from abc import ABC, abstractmethod

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, PolynomialLR


class _Factor(LRScheduler, ABC):
    """Multiply the initial learning rate by a factor that depends on the epoch alone."""

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """Give the learning rate of each parameter group."""
        factor = self.factor(self.last_epoch)
        return [base * factor for base in self.base_lrs]

    @abstractmethod
    def factor(self, epoch: int) -> float:
        """Give the factor of an epoch, counted from 0."""


class Poly(PolynomialLR):
    """Decay as (1 - epoch/epochs)^power: nnU-Net, A2FSeg, RFNet, mmFormer.

    Args:
        decimals: round the learning rate itself, as the RFNet family does to 8 decimals.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        epochs: int,
        power: float = 0.9,
        decimals: int | None = None,
    ) -> None:
        self.decimals = decimals
        super().__init__(optimizer, _some(epochs), power)

    def get_lr(self) -> list[float | Tensor]:
        """Give the rate of the formula; torch multiplies the one before, which was rounded."""
        rates = self._get_closed_form_lr()
        return rates if self.decimals is None else [round(float(r), self.decimals) for r in rates]


class StagedPoly(_Factor):
    """Decay as `Poly` over a first stage, then go on in a decay over all epochs: ShaSpec, LCKD.

    The rate jumps up from near zero to where the longer decay would be.
    """

    def __init__(
        self, optimizer: Optimizer, *, epochs: int, first_epochs: int, power: float = 0.9
    ) -> None:
        self.epochs = _some(epochs)
        self.first_epochs = first_epochs
        self.power = power
        super().__init__(optimizer)

    def factor(self, epoch: int) -> float:
        """Give the factor of the stage that the epoch is in."""
        length = self.first_epochs if epoch < self.first_epochs else self.epochs
        return float(max(0.0, 1 - epoch / length) ** self.power)


class WarmupPoly(_Factor):
    """Rise linearly for some epochs, then decay as `Poly` does: M2FTrans and MIFPN.

    The official code of both learns nothing in its first epoch. The second version of M2FTrans
    begins one step above zero and is heading for zero an epoch later: `zero_start=False`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        epochs: int,
        warmup_epochs: int = 100,
        power: float = 0.9,
        zero_start: bool = True,
    ) -> None:
        self.epochs = _some(epochs)
        self.warmup_epochs = warmup_epochs
        self.power = power
        self.late = 0 if zero_start else 1
        super().__init__(optimizer)

    def factor(self, epoch: int) -> float:
        """Give the factor of the rise or of the decay."""
        if epoch < self.warmup_epochs:
            return (epoch + self.late) / self.warmup_epochs
        length = max(1, self.epochs + self.late - self.warmup_epochs)
        return float(max(0.0, 1 - (epoch - self.warmup_epochs) / length) ** self.power)


class WarmupCosine(_Factor):
    """Rise linearly for some epochs, then fall along half a cosine: NestedFormer and AMoE-BTS.

    The official code climbs from exactly zero in the first epoch to the top in the last of the
    warm-up, in steps of 1/(warmup_epochs - 1); `zero_start` repeats that. The default is at the
    top in that epoch too, but begins one step of 1/warmup_epochs above zero.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        epochs: int,
        warmup_epochs: int = 50,
        zero_start: bool = False,
    ) -> None:
        self.epochs = _some(epochs)
        self.warmup_epochs = warmup_epochs
        self.zero_start = zero_start
        super().__init__(optimizer)

    def factor(self, epoch: int) -> float:
        """Give the factor of the rise or of the fall."""
        if epoch < self.warmup_epochs:
            if self.zero_start:
                return epoch / max(1, self.warmup_epochs - 1)
            return (epoch + 1) / self.warmup_epochs
        length = max(1, self.epochs - self.warmup_epochs)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (epoch - self.warmup_epochs) / length)))


def _some(epochs: int) -> int:
    """Refuse the -1 of a training without end, after which nothing can fall."""
    if epochs < 1:
        raise ValueError(f"epochs is {epochs}; this schedule ends, so set trainer.max_epochs")
    return epochs
