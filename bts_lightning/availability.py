"""Which modalities a training sample keeps: a distribution over subsets, one draw per sample."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import comb

from bts_lightning.chance import generator
from bts_lightning.modalities import COMPLETE, MODALITIES, SUBSETS, Subset, parse_subset


class Availability(ABC):
    """Base of the sampling schemes: a subclass says how likely each of the 15 subsets is.

    Example:
        >>> Uniform15().draw((True, True, False, True), seed=0, epoch=3, index=17)
        (True, True, False, False)
    """

    @abstractmethod
    def weights(self, epoch: int) -> tuple[float, ...]:
        """Give the relative weight of each of `modalities.SUBSETS`; epochs count from 0."""

    def suits(self, available: Sequence[bool]) -> bool:
        """Say whether a case with these modalities can train; by default each can."""
        return True

    def draw(self, available: Sequence[bool], seed: int, epoch: int, index: int) -> Subset:
        """Draw a subset, keep of it what the case really has, and never let that be nothing.

        Subsets that would leave nothing are no part of the distribution: as drawing again, but it
        ends.
        """
        if len(available) != len(MODALITIES) or not any(available):
            raise ValueError(
                f"a case has {len(MODALITIES)} flags with at least one true, got {tuple(available)}"
            )
        likely: dict[Subset, float] = {}
        for subset, weight in zip(SUBSETS, self.weights(epoch), strict=True):
            kept = _intersection(subset, available)
            if weight > 0 and any(kept):
                likely[kept] = likely.get(kept, 0.0) + weight
        if not likely:
            raise ValueError(
                f"{type(self).__name__} leaves nothing of a case that has {tuple(available)};"
                " give each modality a subset with a positive weight"
            )
        position = generator(seed, epoch, index, "availability").random() * sum(likely.values())
        for subset, weight in likely.items():
            position -= weight
            if position < 0:
                return subset
        return subset  # rounding left a remainder of the last interval


class Complete(Availability):
    """Keep everything that the case has."""

    def weights(self, epoch: int) -> tuple[float, ...]:
        return tuple(float(subset == COMPLETE) for subset in SUBSETS)


class Only(Availability):
    """Keep one subset, for a network of its own; cases that cannot show it do not train.

    Args:
        subset: as `t1c+flair`.
    """

    def __init__(self, subset: str) -> None:
        self.subset = parse_subset(subset)

    def suits(self, available: Sequence[bool]) -> bool:
        """Say whether a case has the whole subset."""
        return _intersection(self.subset, available) == self.subset

    def weights(self, epoch: int) -> tuple[float, ...]:
        return tuple(float(subset == self.subset) for subset in SUBSETS)


class Uniform15(Availability):
    """Make the 15 subsets equally likely, as RFNet, mmFormer and their family do."""

    def weights(self, epoch: int) -> tuple[float, ...]:
        return (1.0,) * len(SUBSETS)


class SizeUniform(Availability):
    """Make sizes 1 to 4 equally likely, then the subsets of a size, as U-HeMIS and U-HVED do."""

    def weights(self, epoch: int) -> tuple[float, ...]:
        return tuple(1 / comb(len(MODALITIES), sum(subset)) for subset in SUBSETS)


class Bernoulli(Availability):
    """Keep each modality by itself with probability `p`, given that at least one is kept."""

    def __init__(self, p: float = 0.5) -> None:
        if not 0 < p <= 1:
            raise ValueError(f"p is {p}; the probability to keep a modality is in (0, 1]")
        self.p = p

    def weights(self, epoch: int) -> tuple[float, ...]:
        gone = 1 - self.p
        return tuple(self.p ** sum(s) * gone ** (len(MODALITIES) - sum(s)) for s in SUBSETS)


class EpochAlternate(Availability):
    """Alternate as A2FSeg's code: odd epochs complete, even ones a size of 1 to 3, then a subset.

    Epochs count from 0, as nnU-Net's trainer (of which the official code is a fork) and Lightning's
    `current_epoch` both do, so training begins with an incomplete epoch. The official code draws
    one subset for the batch, which has one sample; here each sample draws its own.
    """

    def weights(self, epoch: int) -> tuple[float, ...]:
        if epoch % 2:
            return Complete().weights(epoch)
        return tuple(
            0.0 if subset == COMPLETE else 1 / comb(len(MODALITIES), sum(subset))
            for subset in SUBSETS
        )


def _intersection(subset: Subset, available: Sequence[bool]) -> Subset:
    t1, t1c, t2, flair = (s and bool(a) for s, a in zip(subset, available, strict=True))
    return t1, t1c, t2, flair
