"""Learn by painting images again that were damaged: the first stage of UniMRSeg."""

import torch
from torch import Tensor
from torch.nn import functional as F

from bts_lightning.modalities import MODALITIES
from bts_lightning.networks.backbone import over
from bts_lightning.networks.presence import full_precision

# The share of voxels that is taken from each channel, and of samples that lose some.
DAMAGE, LOSES_CHANNELS = 0.15, 0.5
# Structural similarity, as MONAI's for values from 0 to 1.
WINDOW, SIGMA, LUMINANCE, STRUCTURE = 11, 1.5, 0.01**2, 0.03**2


def damaged(image: Tensor, present: Tensor) -> Tensor:
    """Shuffle the channels, take some away in half of the samples, and voxels from each."""
    chance = torch.rand(2, *present.shape, device=image.device)
    order = torch.where(present, chance[0], torch.inf).argsort(dim=1)  # what is there comes first
    fewer = 1 + (chance[1, :, :1] * len(MODALITIES)).floor()
    kept = torch.where(chance[1, :, 1:2] < LOSES_CHANNELS, fewer, len(MODALITIES))
    is_kept = torch.arange(len(MODALITIES), device=image.device) < kept  # B M
    shuffled = image.gather(1, over(order, image).expand_as(image))
    is_left = over(is_kept, image) & (torch.rand(image.shape, device=image.device) >= DAMAGE)
    return torch.where(is_left, shuffled, 0)


def repaired(painted: Tensor, image: Tensor, present: Tensor) -> dict[str, Tensor]:
    """Compare images, each slice of them scaled to 0…1, with what was painted."""
    image = full_precision(image)
    low, high = image.amin(dim=(2, 3), keepdim=True), image.amax(dim=(2, 3), keepdim=True)
    target = (image - low) / (high - low).clamp_min(1e-5)
    painted = painted.relu()
    apart = {
        "difference": (painted - target).abs().flatten(2).mean(dim=2),  # B M
        "similarity": 1 - similarity(painted, target),
    }
    return {name: torch.where(present, x, 0).sum() / present.sum() for name, x in apart.items()}


def similarity(x: Tensor, y: Tensor) -> Tensor:
    """Give the structural similarity of two images, B×C, as the mean over Gaussian windows."""
    side = min(WINDOW, *x.shape[2:])
    far = torch.arange(side, device=x.device, dtype=x.dtype) - (side - 1) / 2
    weight = (-((far / SIGMA) ** 2) / 2).exp()
    weight = weight / weight.sum()

    def blurred(z: Tensor) -> Tensor:
        for axis in (2, 3, 4):
            shape = [side if a == axis else 1 for a in range(5)]
            z = F.conv3d(z, weight.view(shape))
        return z

    x, y = x.flatten(0, 1).unsqueeze(1), y.flatten(0, 1).unsqueeze(1)  # (B C) 1 D H W
    a, b, aa, bb, ab = (blurred(z) for z in (x, y, x * x, y * y, x * y))
    light = (2 * a * b + LUMINANCE) / (a * a + b * b + LUMINANCE)
    form = (2 * (ab - a * b) + STRUCTURE) / (aa - a * a + bb - b * b + STRUCTURE)
    return torch.unflatten((light * form).flatten(1).mean(dim=1), 0, (-1, len(MODALITIES)))
