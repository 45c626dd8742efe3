"""Raw phantoms on coarse grids, made once."""

from functools import lru_cache

import numpy as np
import SimpleITK as sitk

from bts_lightning.data.phantom.raw import RawHead, scan_raw
from bts_lightning.data.phantom.write import generate_case
from bts_lightning.modalities import Modality
from bts_lightning.preprocess.series import Series

SIZE = (80, 80, 52)


@lru_cache(maxsize=4)
def raw_head(index: int = 0, size: tuple[int, int, int] = SIZE) -> RawHead:
    """Scan a generated patient."""
    images, _, _ = generate_case(7, index, size)
    return scan_raw(np.random.default_rng([7, index]), images, size)


def series(index: int = 0, *modalities: Modality) -> dict[Modality, Series]:
    """Give the scans of a generated patient, all or some."""
    scans = raw_head(index).scans
    chosen = modalities or tuple(scans)
    return {m: Series(sitk.Cast(scans[m], sitk.sitkFloat32), f"{index}{m}") for m in chosen}
