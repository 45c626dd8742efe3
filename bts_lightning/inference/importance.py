"""How much each modality weighs in each region of a case, while its windows are decoded."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from bts_lightning.inference.averages import Averages
from bts_lightning.modalities import MODALITIES, Subset
from bts_lightning.networks.backbone import Backbone, Weigher

Key = tuple[str, int]


class Importance:
    """Average what a network weighs its modalities with over the voxels of each region.

    Windows count as they do for probabilities, and coarse weights for all voxels that they cover.
    No volume of weights is kept: of each window its sums over regions.

    Args:
        net: with weighers.
        regions: of the truth, R×D×H×W bool.
    """

    def __init__(self, net: Backbone, regions: NDArray[np.bool_]) -> None:
        self.weighers = net.weighers()
        self.regions = torch.from_numpy(regions)
        self._told: list[list[Tensor]] = [[] for _ in self.weighers]
        self._weighted: dict[Key, Tensor] = {}
        self._voxels: dict[Key, Tensor] = {}
        self._masks: dict[Any, Tensor] = {}

    def means(self) -> Mapping[Key, NDArray[np.float64]]:
        """Give, by kind and level, S×R×M×E: NaN where a region is empty, 0 of absent modalities."""
        return {
            key: (weighted / self._voxels[key].unsqueeze(3)).numpy()
            for key, weighted in self._weighted.items()
        }

    @contextmanager
    def listening(self, averages: Averages, subsets: Sequence[Subset]) -> Iterator[None]:
        """Hear the weights of the windows that are decoded inside for these subsets."""
        self.averages, self.present = averages, torch.tensor(subsets, dtype=torch.bool)
        padded = torch.zeros(len(self.regions), *averages.windows.volume.shape[1:])
        padded[(slice(None), *averages.windows.inside)] = self.regions.float()
        self.padded = padded
        try:
            yield
        finally:
            for weigher in self.weighers:
                weigher.listener = None

    def enter(self, windows: Sequence[int], axes: tuple[int, ...]) -> None:
        """Begin with windows that are mirrored along these axes; hear nothing without a tumour."""
        self.windows, self.axes = windows, axes
        self._masks.clear()
        self.forget()
        views = (self.averages.windows.views[w] for w in windows)
        is_needed = any(bool(self.padded[(slice(None), *view)].any()) for view in views)
        for weigher, told in zip(self.weighers, self._told, strict=True):
            weigher.listener = told.append if is_needed else None

    def forget(self, *, encoded: bool = True) -> None:
        """Drop what was told since `enter`, or in decoding alone: what comes is told again."""
        for weigher, told in zip(self.weighers, self._told, strict=True):
            if encoded or weigher.modality is None:
                told.clear()

    def add(self, subsets: Sequence[int]) -> None:
        """Add what was told for these subsets of the windows."""
        for weigher, told in zip(self.weighers, self._told, strict=True):
            if told:
                self._add(weigher, told, subsets)
        self.forget(encoded=False)

    def _add(self, weigher: Weigher, told: Sequence[Tensor], subsets: Sequence[int]) -> None:
        weights = _spread_out(torch.cat(list(told)))  # (S W) M E d h w
        if weigher.modality is None:
            slots = slice(None)
            weights = torch.unflatten(weights, 0, (len(subsets), len(self.windows)))
        else:
            slots = slice(weigher.modality, weigher.modality + 1)
            weights = weights.expand(len(subsets), *weights.shape)
        key = weigher.kind, weigher.level
        shape = len(self.present), len(self.regions), len(MODALITIES), weights.shape[3]
        for where, size in ((self._weighted, shape), (self._voxels, shape[:3])):
            where.setdefault(key, torch.zeros(size, dtype=torch.float64))
        for s, of_windows in zip(subsets, weights, strict=True):
            here = self.present[s, slots, None]
            for w, each in zip(self.windows, of_windows, strict=True):
                depth, height, width = each.shape[2:]
                mask = self._mask(s, w, (depth, height, width)).to(each.device)
                found = torch.einsum("rdhw,medhw->rme", mask, each.float()).double().cpu()
                self._weighted[key][s, :, slots] += torch.where(here, found, 0)
                voxels = mask.sum(dim=(1, 2, 3), dtype=torch.float64).cpu()
                self._voxels[key][s, :, slots] += voxels.unsqueeze(1)

    def _mask(self, s: int, w: int, size: tuple[int, int, int]) -> Tensor:
        """Give the voxels of each region, R×d×h×w, as this window shares them with others."""
        key = int(self.averages.pattern[s]), w, size
        if key not in self._masks:
            share = self.averages.share(w, s)
            region = self.padded[(slice(None), *self.averages.windows.views[w])]
            mask = region.to(share.device) * share
            mask = mask.flip(self.axes) if self.axes else mask
            per_place = math.prod(mask.shape[1:]) / math.prod(size)
            self._masks[key] = F.adaptive_avg_pool3d(mask, size) * per_place
        return self._masks[key]


def _spread_out(weights: Tensor) -> Tensor:
    """Give all weights the shape B×M×E×d×h×w."""
    if weights.dim() == 2:
        weights = weights[:, :, None, None, None]
    return weights.unsqueeze(2) if weights.dim() == 5 else weights
