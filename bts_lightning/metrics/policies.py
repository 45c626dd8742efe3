"""What a distance means and what an empty region scores: the definitions to choose from."""

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Hd95 = Literal["pooled", "directed"]
EmptyPolicy = Literal["brats", "brats2023", "nan", "amoe_bts"]
Floats = NDArray[np.float64]

# The diagonal of the 240×240×155 grid at 1 mm: no two voxels of a BraTS volume lie farther apart.
# Until 2022 the field wrote 373.12866, from 2023 the challenge writes 374.
LONGEST: dict[EmptyPolicy, float] = {"brats": 373.12866, "brats2023": 374.0}


def fill(
    values: Floats,
    truth: Floats,
    predicted: Floats,
    best: float,
    worst: float,
    empty: EmptyPolicy,
) -> Floats:
    """Put the policy's value where a metric is undefined, which is NaN.

    Under `nan` it stays NaN. Under the BraTS policies it is `best` where truth and prediction are
    both empty (nothing was there, nothing was found) and `worst` where only one of them is: a
    sensitivity without truth, or a precision without prediction, belongs to a region that failed.
    An infinite `worst` stands for the longest distance of the policy.

    Under `amoe_bts` all is NaN where there is no truth, and so is a distance of 0: AMoE-BTS writes
    0 where a surface is absent and leaves it out, and perfect answers with it.
    """
    if empty == "amoe_bts":
        is_left_out = (truth == 0) | (math.isinf(worst) & (values == 0))
        return np.where(is_left_out, math.nan, values)
    if empty == "nan":
        return values
    failed = LONGEST[empty] if math.isinf(worst) else worst
    both_empty = (truth == 0) & (predicted == 0)
    return np.where(np.isnan(values), np.where(both_empty, best, failed), values)
