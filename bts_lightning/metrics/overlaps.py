"""Metrics that count voxels: Dice, sensitivity and precision."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from bts_lightning.metrics.policies import Floats

if TYPE_CHECKING:
    # A report reads the table of metrics and measures nothing: it need not wait for the compiler.
    from bts_lightning.metrics.masks import Masks


SMALL_ET = 500  # voxels, in the scripts of RFNet, mmFormer, M2FTrans and IM-Fuse


def dice(masks: "Masks") -> Floats:
    """Divide twice the common voxels by those of both."""
    return _ratio(2 * masks.overlap, masks.found + masks.there)


def dice_pp(masks: "Masks") -> Floats:
    """Take Dice after ET is post-processed: the second column of the RFNet family."""
    return dice(masks)


def without_small_et(masks: "Masks") -> "Masks":
    """Take a predicted ET below 500 voxels for a false alarm; WT and TC stay as they are."""
    is_small = (masks.found < SMALL_ET) & np.array(
        [region == "ET" for region in masks.scheme.regions]
    )
    return replace(
        masks,
        overlap=np.where(is_small, 0, masks.overlap),
        found=np.where(is_small, 0, masks.found),
    )


def sensitivity(masks: "Masks") -> Floats:
    """Divide the common voxels by those of the truth."""
    return _ratio(masks.overlap, masks.there)


def precision(masks: "Masks") -> Floats:
    """Divide the common voxels by those of the prediction."""
    return _ratio(masks.overlap, masks.found)


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)
