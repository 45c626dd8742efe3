"""Metrics that count voxels: Dice, sensitivity and precision."""

from typing import TYPE_CHECKING

import numpy as np

from bts_lightning.metrics.policies import Floats

if TYPE_CHECKING:
    # A report reads the table of metrics and measures nothing: it need not wait for the compiler.
    from bts_lightning.metrics.masks import Masks


def dice(masks: "Masks") -> Floats:
    """Divide twice the common voxels by those of both."""
    return _ratio(2 * masks.overlap, masks.found + masks.there)


def sensitivity(masks: "Masks") -> Floats:
    """Divide the common voxels by those of the truth."""
    return _ratio(masks.overlap, masks.there)


def precision(masks: "Masks") -> Floats:
    """Divide the common voxels by those of the prediction."""
    return _ratio(masks.overlap, masks.found)


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)
