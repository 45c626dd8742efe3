"""The passes of the augmentation over tensors, for a device; `passes.py` has a processor's."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bts_lightning.data.passes import gaussian
from bts_lightning.data.transform import Patch


class Statistics:
    """Mean, deviation and extremes of each channel over the brain, 4×1×1×1."""

    def __init__(self, image: Tensor, brain: Tensor) -> None:
        every = (1, 2, 3)
        count = brain.sum(every, keepdim=True).clamp_min(1)
        nothing = image.new_zeros(())
        self.mean = torch.where(brain, image, nothing).sum(every, keepdim=True) / count
        away = torch.where(brain, image - self.mean, nothing)
        self.std = ((away * away).sum(every, keepdim=True) / count).sqrt()
        self.low = torch.where(brain, image, torch.inf).amin(every, keepdim=True)
        self.high = torch.where(brain, image, -torch.inf).amax(every, keepdim=True)


def in_brain(patch: Patch, image: Tensor) -> Patch:
    """Take the new image where there is brain."""
    return replace(patch, image=torch.where(patch.brain, image, patch.image))


def grid(matrix: np.ndarray, patch: Patch) -> Tensor:
    """Say where each voxel of the result lies in the source, for a matrix in voxels D, H, W."""
    source = np.array(patch.label.shape)
    size, centre = source, source / 2
    if patch.inside is not None:
        size, centre = np.array(patch.inside.size), np.array(patch.inside.centre)
    # Normalised coordinates run from -1 to 1 whatever the edge, in the order W, H, D.
    turn = matrix * size[None, :] / source[:, None]
    shift = 2 * centre / source - 1
    theta = np.concatenate([turn[::-1, ::-1], shift[::-1, None]], axis=1).astype(np.float32)
    # Not blocking: the processor must not wait for the step before.
    moved = torch.from_numpy(theta).to(patch.label.device, non_blocking=True)
    return F.affine_grid(moved[None], [1, 1, *size.tolist()], align_corners=False)


def blurred(x: Tensor, sigma: float) -> Tensor:
    """Blur a channel; at its faces the volume goes on as it ends."""
    weights = gaussian(sigma)
    radius = len(weights) // 2
    for axis, length in enumerate(x.shape):
        edges = [0] * 6  # of the last axis first
        edges[4 - 2 * axis : 6 - 2 * axis] = [radius] * 2
        wide = F.pad(x[None, None], edges, "replicate")[0, 0]
        # Sums of shifted copies: the same bits on every run; a tuned convolution may differ.
        x = sum(
            (float(w) * wide.narrow(axis, shift, length) for shift, w in enumerate(weights)),
            start=torch.zeros((), device=x.device),
        )
    return x


def coarse(x: Tensor, zoom: float) -> Tensor:
    """Show a channel as if its voxels were 1 / zoom as wide."""
    size = [max(1, round(length * zoom)) for length in x.shape]
    small = F.interpolate(x[None, None], size, mode="nearest-exact")
    return F.interpolate(small, x.shape, mode="trilinear", align_corners=False)[0, 0]
