"""Put predictions back on the grid, and into the label values, of the files they were made from."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bts_lightning.data.cache.nifti import write_nifti
from bts_lightning.data.cache.ready import ReadyCase


def write_prediction(case: ReadyCase, label_map: NDArray[np.uint8], out: Path) -> None:
    """Write a label map, D×H×W in stored classes on the cropped grid, as the data set does."""
    full = case.geometry.in_file(case.geometry.uncrop(label_map))
    write_nifti(full, np.array(case.geometry.affine), out)


def write_probabilities(case: ReadyCase, probabilities: NDArray[np.float32], out: Path) -> None:
    """Write probabilities C×D×H×W as one 4-D file, channels last; outside the box they are 0."""
    full = case.geometry.uncrop(probabilities.astype(np.float32))
    write_nifti(np.moveaxis(full, 0, -1), np.array(case.geometry.affine), out)
