"""What a score is when the prediction, the truth or both are empty."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

EmptyPolicy = Literal["brats", "brats2023", "nan"]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

# The diagonal of the 240×240×155 grid at 1 mm: no two voxels of a BraTS volume lie farther apart.
# Until 2022 the field wrote 373.12866, from 2023 the challenge writes 374.
WORST_HD95: dict[EmptyPolicy, float] = {
    "brats": 373.12866,
    "brats2023": 374.0,
    "nan": float("nan"),
}


def ratio(part: Floats, whole: Floats, both_empty: Flags, empty: EmptyPolicy) -> Floats:
    """Divide, and where nothing is divided by nothing say what the policy says.

    0/0 under `nan` is NaN. Under the BraTS policies it is 1 where truth and prediction are both
    empty (nothing was there, nothing was found) and 0 where only one of them is: a sensitivity
    without truth, or a precision without prediction, belongs to a region that failed.
    """
    undefined = np.nan if empty == "nan" else np.where(both_empty, 1.0, 0.0)
    return np.where(whole > 0, part / np.maximum(whole, 1), undefined)


def fill_hd95(hd95: Floats, truth: Floats, predicted: Floats, empty: EmptyPolicy) -> Floats:
    """Put the policy's value where a surface is absent: 0 if rightly so, else the worst.

    Under `nan` every absent surface gives NaN.
    """
    nothing = (truth == 0) & (predicted == 0)
    one_side = (truth == 0) ^ (predicted == 0)
    filled = np.where(one_side, WORST_HD95[empty], hd95)
    return np.where(nothing, np.nan if empty == "nan" else 0.0, filled)
