"""The modality gap of a network: how far apart its features of the four modalities lie."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from bts_lightning.data.cache.prepare import CachedCase
from bts_lightning.distillation.answer import Answer
from bts_lightning.inference import Protocol
from bts_lightning.inference.windows import lay_out
from bts_lightning.modalities import COMPLETE, MODALITIES
from bts_lightning.networks.backbone import Backbone

# What every network has: its input, and what its head reads when it sees one modality alone.
IMAGES, HEAD = "images", "head"
# Of one window, evenly spread; in double precision two million would take gigabytes.
VOXELS = 2**16


@dataclass(frozen=True)
class Gap:
    """Two distances between modalities, averaged over their six pairs; both are free of scale.

    Each channel is divided by its standard deviation over the voxels of all modalities, so features
    that only shrink come no closer. 0 is no gap.

    Attributes:
        distance: half the mean squared difference at the same voxel; 1 for features that have
            nothing to do with each other, up to 4/3 where only the modality decides.
        frechet: squared Fréchet distance of Gaussians fitted to the features, per channel: how much
            the distributions differ, wherever their values lie.
    """

    distance: float
    frechet: float


class Moments:
    """Add up what both distances need, in double precision, patch by patch."""

    def __init__(self) -> None:
        self.count = 0
        self._parts: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        """Add features M×C×V of the same V voxels in all modalities."""
        x = x.double()
        new = [
            x.sum(dim=2),  # M C
            x @ x.mT,  # M C C
            torch.einsum("mcv,ncv->mnc", x, x),
        ]
        self.count += x.shape[2]
        self._parts = [a + b for a, b in zip(self._parts, new, strict=True)] if self._parts else new

    def gap(self) -> Gap:
        """Compare the modalities."""
        mean, outer, cross = ((part / self.count).cpu().numpy() for part in self._parts)
        square = np.einsum("mmc->mc", cross)
        variance = square.mean(axis=0) - mean.mean(axis=0) ** 2
        # A channel that says the same everywhere cannot be measured in its own deviations.
        varies = variance > 1e-9 * np.maximum(square.mean(axis=0), 1e-30)
        if not varies.any():
            return Gap(0.0, 0.0)
        scale = np.sqrt(variance[varies])
        mean, square, cross = mean[:, varies], square[:, varies], cross[:, :, varies]
        outer = outer[:, varies][:, :, varies]
        spread = (outer - mean[:, :, None] * mean[:, None]) / (scale[:, None] * scale)
        mean = mean / scale
        distances, frechets = [], []
        for m, n in combinations(range(len(mean)), 2):
            distances.append((square[m] + square[n] - 2 * cross[m, n]) / (2 * scale**2))
            apart = ((mean[m] - mean[n]) ** 2).sum()
            frechets.append((apart + _bures(spread[m], spread[n])) / len(scale))
        return Gap(float(np.mean(distances)), float(np.mean(frechets)))


@torch.inference_mode()
def measure_gaps(
    net: Backbone, cases: Iterable[CachedCase], protocol: Protocol, device: torch.device
) -> dict[str, Gap]:
    """Measure complete cases over their brains: images, aligned levels, and the head.

    Levels are those where a network keeps one modality apart from the others; `head` is what the
    head reads when the network sees one modality alone.
    """
    net = net.to(device).eval()
    once = replace(protocol, overlap=0.0)
    moments: dict[str, Moments] = {}
    for case in cases:
        if case.available != COMPLETE:
            continue
        windows = lay_out(case.image, case.available, once, net, case.geometry.origin)
        for view, place, shows in zip(windows.views, windows.place, windows.brain, strict=True):
            if not shows.any():
                continue
            patch = windows.volume[(slice(None), *view)].float().unsqueeze(0).to(device)
            brain = (patch != 0).any(dim=1, keepdim=True)
            for name, x in _features(net, patch, place.unsqueeze(0).to(device)).items():
                inside = F.interpolate(brain.float(), x.shape[2:], mode="area")[0, 0] > 0.5
                if inside.any():
                    voxels = x[:, :, inside]
                    some = voxels[:, :, :: max(1, voxels.shape[2] // VOXELS)]
                    moments.setdefault(name, Moments()).add(some)
    return {name: moment.gap() for name, moment in moments.items()}


def _features(net: Backbone, patch: Tensor, place: Tensor) -> dict[str, Tensor]:
    """Give features M×C×d×h×w by their name."""
    complete = torch.ones(1, len(MODALITIES), dtype=torch.bool, device=patch.device)
    features = net.encode(patch, complete, place)
    found = {IMAGES: patch[0].unsqueeze(1)}
    found |= {f"level {level}": x[0] for level, x in net.comparable(features).items()}
    each = complete.diag_embed()[0].unsqueeze(1)  # M 1 M
    alone = [Answer(net, net(patch, one, place=place)).embedding[0] for one in each]
    return found | {HEAD: torch.stack(alone)}


def _bures(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Give tr(A + B - 2 (A^½ B A^½)^½) of two covariances."""
    values, vectors = np.linalg.eigh(a)
    root = vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T
    inner = np.clip(np.linalg.eigvalsh(root @ b @ root), 0, None)
    return float(max(0.0, np.trace(a) + np.trace(b) - 2 * np.sqrt(inner).sum()))
