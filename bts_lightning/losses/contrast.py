"""DC-Seg: anatomies of one patient are alike, and so are styles of one modality."""

import torch
from torch import Tensor
from torch.nn import functional as F

# SSIM's window: as many voxels as a Gaussian of this width needs, as in torchmetrics.
SIGMA, RADIUS = 1.5, 5
# "Learned" in the official code, but made anew in each step and in no optimizer.
TEMPERATURE = 0.07


def anatomy_contrast(maps: Tensor, real: Tensor) -> Tensor:
    """Ask of each pair of maps whether they are of one sample: B×M×C×D×H×W, real B×M bool."""
    b, m = real.shape
    sample = torch.arange(b, device=maps.device).repeat_interleave(m)
    return contrast(similarities(maps.flatten(0, 1), real.flatten()), sample, real.flatten())


def modality_contrast(styles: Tensor, real: Tensor) -> Tensor:
    """Ask of each pair of styles whether they are of one modality: B×M×S, real B×M bool."""
    b, m = real.shape
    modality = torch.arange(m, device=styles.device).repeat(b)
    unit = F.normalize(torch.where(real.unsqueeze(2), styles, 0).flatten(0, 1), dim=1)
    return contrast(unit @ unit.T, modality, real.flatten())


def contrast(alike: Tensor, group: Tensor, real: Tensor) -> Tensor:
    """Give the cross entropy of N×N similarities with who is of one group (N), over real ones."""
    same = (group.unsqueeze(0) == group.unsqueeze(1)).to(alike.dtype)
    entropy = F.binary_cross_entropy_with_logits(alike / TEMPERATURE, same, reduction="none")
    pairs = real.unsqueeze(0) & real.unsqueeze(1)
    return torch.where(pairs, entropy, 0).sum() / pairs.sum().clamp_min(1)


def similarities(maps: Tensor, real: Tensor) -> Tensor:
    """Give the structural similarity (SSIM) of all pairs of maps N×C×D×H×W, as N×N."""
    maps = torch.where(real.view(-1, 1, 1, 1, 1), maps, 0)
    first, second = torch.triu_indices(len(maps), len(maps), offset=1, device=maps.device)
    spread = spread_of(maps, real)
    c1, c2 = (0.01 * spread) ** 2, (0.03 * spread) ** 2
    mean = smooth(maps)
    variance = (smooth(maps * maps) - mean * mean).clamp_min(0)
    both = mean[first] * mean[second]
    covariance = smooth(maps[first] * maps[second]) - both
    upper = (2 * both + c1) * (2 * covariance + c2)
    squares = mean.square()
    lower = (squares[first] + squares[second] + c1) * (variance[first] + variance[second] + c2)
    pairs = (upper / lower).flatten(1).mean(dim=1)
    found = torch.zeros(len(maps), len(maps), device=maps.device, dtype=pairs.dtype)
    found = found.index_put((first, second), pairs)
    return found + found.T + torch.eye(len(maps), device=maps.device, dtype=pairs.dtype)


def spread_of(maps: Tensor, real: Tensor) -> Tensor:
    """Give the range of the values of the real maps."""
    each = real.view(-1, 1, 1, 1, 1)
    return torch.where(each, maps, -torch.inf).max() - torch.where(each, maps, torch.inf).min()


def smooth(maps: Tensor) -> Tensor:
    """Average N×C×D×H×W over a Gaussian around each voxel; borders are mirrored."""
    # A mirror shows less than a whole map; patches of 48 and more need no shorter window.
    radius = min(RADIUS, *(size - 1 for size in maps.shape[2:]))
    offsets = torch.arange(-radius, radius + 1, device=maps.device, dtype=maps.dtype)
    bell = torch.exp(-offsets.square() / (2 * SIGMA**2))
    x = maps.flatten(0, 1).unsqueeze(1)
    for axis in range(3):
        pad = [0] * 6
        pad[4 - 2 * axis : 6 - 2 * axis] = [radius, radius]
        shape = [1] * 5
        shape[2 + axis] = -1
        x = F.conv3d(F.pad(x, pad, mode="reflect"), (bell / bell.sum()).view(shape))
    return x.view_as(maps)
