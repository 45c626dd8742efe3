"""Which modalities a training sample keeps: a distribution over subsets, one draw per sample."""

import ast
import csv
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from io import StringIO
from math import comb, prod
from pathlib import Path

import numpy as np

from bts_lightning.chance import generator
from bts_lightning.errors import DataError
from bts_lightning.files import content
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

    def has(self, case: str, available: Sequence[bool]) -> Subset:
        """Give what a case has in this training: by default all that was acquired."""
        return _intersection(COMPLETE, available)

    def draw(self, available: Sequence[bool], seed: int, epoch: int, index: int) -> Subset:
        """Draw a subset, keep of it what the case really has, and never let that be nothing.

        Subsets that would leave nothing are no part of the distribution: as drawing again, but it
        ends.
        """
        return self._drawn(
            available, self.weights(epoch), generator(seed, epoch, index, "availability")
        )

    def _drawn(
        self, available: Sequence[bool], weights: Sequence[float], chance: np.random.Generator
    ) -> Subset:
        if len(available) != len(MODALITIES) or not any(available):
            raise ValueError(
                f"a case has {len(MODALITIES)} flags with at least one true, got {tuple(available)}"
            )
        likely: dict[Subset, float] = {}
        for subset, weight in zip(SUBSETS, weights, strict=True):
            kept = _intersection(subset, available)
            if weight > 0 and any(kept):
                likely[kept] = likely.get(kept, 0.0) + weight
        if not likely:
            raise ValueError(
                f"{type(self).__name__} leaves nothing of a case that has {tuple(available)};"
                " give each modality a subset with a positive weight"
            )
        position = chance.random() * sum(likely.values())
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
    """Make sizes 1 to 4 equally likely, then the subsets of a size, as U-HeMIS and U-HVED do.

    Args:
        largest: of the sizes; 3 leaves the complete set out, as LCKD does.
    """

    def __init__(self, largest: int = len(MODALITIES)) -> None:
        if not 1 <= largest <= len(MODALITIES):
            raise ValueError(f"largest is {largest}; give a size from 1 to {len(MODALITIES)}")
        self.largest = largest

    def weights(self, epoch: int) -> tuple[float, ...]:
        return tuple(
            1 / comb(len(MODALITIES), sum(subset)) if sum(subset) <= self.largest else 0.0
            for subset in SUBSETS
        )


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
        return SizeUniform(len(MODALITIES) - 1).weights(epoch)


class CompleteFirst(Availability):
    """Keep everything in the first epochs, then what another scheme keeps, as ShaSpec does.

    Args:
        epochs: how many are complete.
        then: the scheme of all others.
    """

    def __init__(self, epochs: int, then: Availability) -> None:
        if epochs < 0:
            raise ValueError(f"epochs is {epochs}; the smallest is 0")
        self.epochs = epochs
        self.then = then

    def suits(self, available: Sequence[bool]) -> bool:
        """Say whether the later scheme can take a case."""
        return self.then.suits(available)

    def has(self, case: str, available: Sequence[bool]) -> Subset:
        """Give what the later scheme gives."""
        return self.then.has(case, available)

    def weights(self, epoch: int) -> tuple[float, ...]:
        return (Complete() if epoch < self.epochs else self.then).weights(epoch)


class MissingRates(Availability):
    """Take modalities from the training cases for good, each with a rate of its own (PASSION).

    Shi et al.: PASSION: Towards Effective Incomplete Multi-Modal Medical Image Segmentation with
    Imbalanced Missing Rates, ACM MM 2024. What a case has lost is as if it had never been acquired:
    no loss and no head sees it. Validation and test cases stay as they are.

    Deviation: each case draws by itself, given that something is left to it, whatever other cases
    there are; the authors fill quotas of the 15 subsets. Their own draws are in their files.

    Args:
        rates: of missing, for T1, T1c, T2, FLAIR. The digits of the authors' `mr2468` mean T1, T1c,
            FLAIR, T2, so that it is [.2, .4, .8, .6] here.
        file: a CSV of the authors (github.com/Jun-Jie-Shi/PASSION at fd308b5) in place of `rates`:
            columns `data_name` and `mask`, a list of FLAIR, T1c, T1, T2.
        within: what a sample keeps of what its case has: all by default (`idt` there), `Uniform15`
            for a subset a step (`idt_drop`).
        seed: of the draw by rates.
    """

    def __init__(
        self,
        rates: Sequence[float] | None = None,
        *,
        file: Path | str | None = None,
        within: Availability | None = None,
        seed: int = 0,
    ) -> None:
        if (rates is None) == (file is None):
            raise ValueError("give either rates, as [.2, .4, .8, .6], or file, and not both")
        if rates is not None and (
            len(rates) != len(MODALITIES)
            or not all(0 <= rate <= 1 for rate in rates)
            or prod(rates) == 1
        ):
            raise ValueError(
                f"rates is {list(rates)}; give {len(MODALITIES)} numbers from 0 to 1 for "
                f"{', '.join(MODALITIES)}, not all of them 1"
            )
        self.rates = rates
        self.file = file
        self.within = within or Complete()
        self.seed = seed

    @cached_property
    def listed(self) -> dict[str, Subset]:
        """Give what the file says; nothing is read before it is asked."""
        return _read_passion(Path(self.file)) if self.file is not None else {}

    def has(self, case: str, available: Sequence[bool]) -> Subset:
        """Give what the case keeps for the whole training."""
        if self.rates is not None:
            chances = [
                prod(
                    rate if not kept else 1 - rate for rate, kept in zip(self.rates, s, strict=True)
                )
                for s in SUBSETS
            ]
            return self._drawn(available, chances, generator(self.seed, case, "missing rates"))
        if case not in self.listed:
            raise DataError(
                f"{self.file} has no row for the training case {case}; give the file of the split "
                "that trains, or data.availability.rates"
            )
        kept = _intersection(self.listed[case], available)
        if not any(kept):
            raise DataError(
                f"{self.file} leaves nothing of case {case}, which has {tuple(available)}"
            )
        return kept

    def suits(self, available: Sequence[bool]) -> bool:
        """Say whether what is left of a case can train."""
        return self.within.suits(available)

    def weights(self, epoch: int) -> tuple[float, ...]:
        return self.within.weights(epoch)


def _read_passion(file: Path) -> dict[str, Subset]:
    """Read which modalities each case keeps; names also without the grade before them."""
    kept: dict[str, Subset] = {}
    try:
        for row in csv.DictReader(StringIO(content(file).decode(), newline="")):
            flair, t1c, t1, t2 = (bool(flag) for flag in ast.literal_eval(row["mask"]))
            name = row["data_name"].strip()
            kept[name] = kept[re.sub(r"^(HGG|LGG|HG|LG)[_/]", "", name)] = (t1, t1c, t2, flair)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    except (KeyError, ValueError, SyntaxError, TypeError, csv.Error, RecursionError) as error:
        raise DataError(
            f"{file} is no list of PASSION's: it needs columns data_name and mask, a mask such as "
            f'"[True, False, True, False]" for FLAIR, T1c, T1, T2 ({error!r})'
        ) from error
    return kept


def _intersection(subset: Subset, available: Sequence[bool]) -> Subset:
    t1, t1c, t2, flair = (s and bool(a) for s, a in zip(subset, available, strict=True))
    return t1, t1c, t2, flair
