"""What an augmentation is: a function of one patch and of chance that belongs to the sample."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bts_lightning.chance import generator, probability

Range = tuple[float, float]
Three = tuple[int, int, int]
Reach = tuple[float, float, float]


@dataclass(frozen=True)
class Inside:
    """Where a patch lies in a box that was read around it.

    Attributes:
        size: edges of the patch.
        centre: its centre in voxels, counted from the corner of the box, where it begins.
    """

    size: Three
    centre: Reach


@dataclass(frozen=True)
class Patch:
    """One sample under way.

    Attributes:
        image: 4×D×H×W float32.
        label: D×H×W uint8.
        brain: 4×D×H×W bool, what is not background; each channel has its own, because the shape of
            one modality must not show through in another.
        inside: until the transform that needs a larger box has run, where in it the patch lies.
    """

    image: Tensor
    label: Tensor
    brain: Tensor
    inside: Inside | None = None


class Chance:
    """The random numbers of one transform for one sample."""

    def __init__(self, seed: int, name: str) -> None:
        self._numbers = generator(seed, name)

    def happens(self, p: float) -> bool:
        """Say yes with probability `p`."""
        return self._numbers.random() < p

    def between(self, bounds: Range) -> float:
        """Draw a number of the range."""
        return float(self._numbers.uniform(*bounds))

    def around_one(self, bounds: Range) -> float:
        """Draw a factor below one in half of all cases and above in the others, as nnU-Net does."""
        low, high = bounds
        below = low < 1 and (high <= 1 or self.happens(0.5))
        return self.between((low, min(high, 1)) if below else (max(low, 1), high))

    def choice(self, count: int) -> int:
        """Draw one of `count` options."""
        return int(self._numbers.integers(count))

    def array(self, bounds: Range, shape: Sequence[int]) -> NDArray[Any]:
        """Draw many numbers of the range at once."""
        return self._numbers.uniform(*bounds, size=tuple(shape)).astype(np.float32)

    def keys(self) -> tuple[int, int]:
        """Draw what names one field of noise."""
        first, second = self._numbers.integers(2**32, size=2).tolist()
        return first, second


class Transform(ABC):
    """Base of the transforms: `p` is the probability that a sample is touched at all."""

    def __init__(self, p: float) -> None:
        self.p = probability("p", p)

    def reach(self, size: Three, chance: Chance) -> Reach | None:
        """Tell how far from the centre of the patch `apply` looks, where that is beyond it."""
        return None

    @abstractmethod
    def apply(self, patch: Patch, chance: Chance) -> Patch:
        """Transform one sample and leave the argument as it was."""

    def apply_here(self, image: NDArray[Any], label: NDArray[Any], chance: Chance) -> None:
        """Do the same in a processor's memory, over the arguments; by compiled passes if it can."""
        one, truth = torch.from_numpy(image), torch.from_numpy(label)
        after = self.apply(Patch(one, truth, one != 0), chance)
        one.copy_(after.image)
        truth.copy_(after.label)


def positive(name: str, bounds: Range) -> Range:
    """Refuse a range that is empty or reaches zero."""
    low, high = bounds
    if not 0 < low <= high:
        raise ValueError(f"{name} is [{low}, {high}]; give two positive numbers, the smaller first")
    return bounds
