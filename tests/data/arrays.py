"""Cases in memory, for tests of single patches."""

from dataclasses import dataclass

import numpy as np

from bts_lightning.modalities import COMPLETE, Subset


@dataclass(frozen=True)
class ArrayCase:
    """A case in memory."""

    name: str
    image: np.ndarray
    label: np.ndarray
    available: Subset = COMPLETE
    origin: tuple[int, int, int] = (0, 0, 0)


def patch() -> tuple[np.ndarray, np.ndarray]:
    image = np.arange(1, 4 * 8**3 + 1, dtype=np.float16).reshape(4, 8, 8, 8) / 256
    label = np.zeros((8, 8, 8), np.uint8)
    label[1, 2, 3] = 3
    return image, label


def four_cases() -> list[ArrayCase]:
    return [ArrayCase(f"case{i}", *patch()) for i in range(4)]
