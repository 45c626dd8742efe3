"""HD95: the 95th percentile of the distances between two surfaces."""

from typing import TYPE_CHECKING

import numpy as np

from bts_lightning.metrics.policies import Floats

if TYPE_CHECKING:
    from bts_lightning.metrics.masks import Masks


def hd95(masks: "Masks") -> Floats:
    """Take the percentile as the masks' definition says, in mm; see `score`."""
    result = np.full_like(masks.overlap, np.nan)
    for pair, (to_truth, to_prediction) in masks.distances.items():
        if masks.hd95 == "pooled":
            result[pair] = _percentile95(np.concatenate([to_truth, to_prediction]))
        else:
            result[pair] = max(_percentile95(to_truth), _percentile95(to_prediction))
    return result


def _percentile95(squares: Floats) -> float:
    """Take the 95th percentile of the roots as `np.percentile` does, without all the roots."""
    last = squares.size - 1
    place = last * 0.95
    low = int(place)
    high = min(low + 1, last)
    squares = np.partition(squares, [low, high])
    a, b, part = float(np.sqrt(squares[low])), float(np.sqrt(squares[high])), place - low
    # NumPy interpolates from the nearer end.
    return b - (b - a) * (1 - part) if part >= 0.5 else a + (b - a) * part
