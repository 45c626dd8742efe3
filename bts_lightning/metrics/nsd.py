"""Voxel NSD: how much of two surfaces lies within 1 mm of the other one."""

from typing import TYPE_CHECKING

import numpy as np

from bts_lightning.metrics.policies import Floats

if TYPE_CHECKING:
    # A report reads the table of metrics and measures nothing: it need not wait for the compiler.
    from bts_lightning.metrics.masks import Masks

# 1 mm, as BraTS 2024 and 2025 have it, in squared mm. The margin is for grids whose affine is
# turned: their voxels of 1 mm come out as 1.0000001 mm, and half of all surfaces would be lost.
_WITHIN = (1.0 + 1e-5) ** 2


def nsd(masks: "Masks") -> Floats:
    """Average both surfaces' shares of voxels that are at most 1 mm from the other surface.

    Voxels count alike; surface-distance (DeepMind) weighs them by area and gives other numbers.
    """
    result = np.full_like(masks.overlap, np.nan)
    for pair, (to_truth, to_prediction) in masks.distances.items():
        result[pair] = ((to_truth <= _WITHIN).mean() + (to_prediction <= _WITHIN).mean()) / 2
    return result
