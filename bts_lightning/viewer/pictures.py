"""Volumes as NIfTI bytes for the page: what a network was shown, and the truth."""

import gzip
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bts_lightning.data.cache.ready import ReadyCase

# Grey values of the brain: background is 0, and an int16 goes on a little further.
_GREYS = 32000
# Every so many voxels are enough to find the window of a picture.
_STEP = 17


def picture(case: ReadyCase, modality: int) -> bytes:
    """Give an image on the grid of its file: grey values of the brain, and 0 around it."""
    voxels = np.asarray(case.image[modality], np.float32)
    brain = voxels != 0
    some = voxels[brain]
    low, high = (float(some.min()), float(some.max())) if some.size else (0.0, 1.0)
    scale = (_GREYS - 1) / max(high - low, 1e-6)
    grey = np.where(brain, 1 + (voxels - low) * scale, 0).astype(np.int16)
    window = np.percentile(some[::_STEP], [0.5, 99.5]) if some.size else np.array([low, high])
    least, most = (1 + (window - low) * scale).tolist()
    return _nifti(case, case.geometry.uncrop(grey), least, most)


def truth(case: ReadyCase) -> bytes | None:
    """Give the label map of the expert as its file has it."""
    if case.label is None:
        return None
    labels = case.geometry.in_file(case.geometry.uncrop(np.asarray(case.label)))
    return gzip.compress(_nifti(case, labels), compresslevel=1, mtime=0)


def _nifti(case: ReadyCase, array: NDArray[Any], least: float = 0, most: float = 0) -> bytes:
    affine = np.array(case.geometry.affine)
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.header["cal_min"], image.header["cal_max"] = least, most
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    return bytes(image.to_bytes())
