"""DeMoSeg: parts of each present modality stand in for those that are absent."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from bts_lightning.errors import ConfigError
from bts_lightning.modalities import MODALITIES, Modality
from bts_lightning.networks.backbone import Auxiliary, Backbone, Features, Output
from bts_lightning.networks.layers import (
    Block,
    ExpandingPath,
    deep_weights,
    halving_widths,
    initialise,
)
from bts_lightning.networks.presence import full_precision, stack_pyramids, without_autocast

# Who stands in for a modality, in this order; and for whom the parts 1, 2, 3 of a modality are.
PARTNERS: dict[Modality, tuple[Modality, ...]] = {
    "t1": ("t1c", "t2", "flair"),
    "t1c": ("t1", "flair", "t2"),
    "t2": ("flair", "t1", "t1c"),
    "flair": ("t2", "t1c", "t1"),
}
PARTS = len(MODALITIES)


class DeMoSeg(Backbone):
    """Route a quarter of each present modality, or of its first partner, into one U-Net.

    Yang et al.: Decoupling Feature Representations of Ego and Other Modalities for Incomplete
    Multi-modal Brain Tumor Segmentation, BIBM 2024, arXiv 2408.08708. Official code:
    github.com/kk42yy/DeMoSeg at 73cd4bb (Apache-2.0; nothing was copied).

    The stem of a modality makes four parts: one for itself and one for each other modality. An
    absent modality is replaced by the part made for it by the first of its partners that is there.
    Every second convolution of the network adds to each channel another one, chosen by the rank of
    a score. A score acts through its rank alone, so no gradient reaches the scorers: they keep
    their random start, as officially, and are not given to the optimizer.

    Deviations: the divergence of the stems is a mean over the batch, officially a sum. As released
    it cannot run at all, because the stem gives a pair that the next layer does not take, so it is
    off by default.

    Args:
        width: channels of a stem, a multiple of 4; they double with each halving.
        poolings: how often the resolution is halved; sizes must be multiples of 2^poolings.
        width_limit: no level is wider.
        kl_weight: of the divergence between what a part is meant for and what stands in; 0.5 in
            the official code since 2026, 0 before.
        out_channels: 4 for labels, 3 for regions.

    Example:
        >>> net = DeMoSeg(width=8, poolings=3).eval()
        >>> present = torch.tensor([[False, True, False, True]])
        >>> net(torch.randn(1, 4, 16, 16, 16), present).logits.shape
        torch.Size([1, 4, 16, 16, 16])
    """

    least_width = PARTS
    fused_levels = (0,)
    sources: Tensor
    parts: Tensor

    def __init__(
        self,
        *,
        width: int = 32,
        poolings: int = 5,
        width_limit: int = 320,
        kl_weight: float = 0.0,
        out_channels: int = 4,
    ) -> None:
        super().__init__(out_channels, width=width, poolings=poolings, width_limit=width_limit)
        if width % PARTS:
            raise ConfigError(f"width is {width}; DeMoSeg needs a multiple of {PARTS}")
        self.divisor = 2**poolings
        self.kl_weight = kl_weight
        widths = halving_widths(width, poolings, width_limit)
        self.stems = nn.ModuleList(Block(1, width) for _ in MODALITIES)
        self.sort_stems = nn.ModuleList(
            ChannelSort(width, descending=name != "t1") for name in MODALITIES
        )
        self.contract = nn.ModuleList(
            nn.Sequential(Block(a, b, stride=2), ChannelSort(b)) for a, b in pairwise(widths)
        )
        self.expand = ExpandingPath(widths, out_channels, heads=0, second=ChannelSort)
        self.head = nn.Conv3d(width, out_channels, kernel_size=1, bias=False)
        self.deep_heads = nn.ModuleList(
            nn.Conv3d(w, out_channels, kernel_size=1, bias=False) for w in widths[1:-1]
        )
        initialise(self)
        names = list(MODALITIES)
        sources = [[names.index(name) for name in (slot, *PARTNERS[slot])] for slot in names]
        parts = [
            [0, *(1 + PARTNERS[name].index(slot) for name in PARTNERS[slot])] for slot in names
        ]
        self.register_buffer("sources", torch.tensor(sources), persistent=False)  # slot rank
        self.register_buffer("parts", torch.tensor(parts), persistent=False)

    @classmethod
    def small(cls) -> dict[str, Any]:
        """Give arguments of the same wiring that run in a blink."""
        return {"width": 8, "poolings": 3, "width_limit": 16}

    def encode_levels(self, image: Tensor, present: Tensor) -> tuple[Tensor, ...]:
        """Give the stems, and for their divergence what they were before the sort."""

        def stem(m: int) -> list[Tensor]:
            plain = self.stems[m](image[:, m : m + 1])
            sorted_ = self.sort_stems[m](plain)
            return [sorted_, plain] if self.training and self.kl_weight else [sorted_]

        return stack_pyramids(stem)

    def decode(self, features: Features) -> Output:
        """Route the parts and run the U-Net on them."""
        levels = [self.route(features)]
        for stage in self.contract:
            levels.append(stage(levels[-1]))
        decoded = self.expand(levels)
        logits = self.head(decoded[0])
        if not self.training:
            return Output(logits, embedding=decoded[0])
        weights = deep_weights(len(self.deep_heads) + 1)
        deep = tuple(
            Auxiliary("deep", head(x), weight)
            for head, x, weight in zip(self.deep_heads, decoded[1:], weights[1:], strict=False)
        )
        penalties = {"kl": self.kl_weight * self.divergence(features)} if self.kl_weight else {}
        return Output(logits, weights[0], deep, penalties, embedding=decoded[0])

    def route(self, features: Features) -> Tensor:
        """Fill the slot of each modality with its own part, or with that of a stand-in."""
        parts = torch.unflatten(features.levels[0], 2, (PARTS, -1))  # B M P C D H W
        present = features.present[0]
        first = present[:, self.sources].int().argmax(dim=2, keepdim=True)  # B slot 1
        batch = present.shape[0]
        source = self.sources.expand(batch, -1, -1).gather(2, first).squeeze(2)  # B slot
        part = self.parts.expand(batch, -1, -1).gather(2, first).squeeze(2)
        # Indexing copies what is chosen and reads nothing else, so nothing absent passes.
        rows = torch.arange(batch, device=present.device).unsqueeze(1)
        return parts[rows, source, part].flatten(1, 2)  # B (slot C) D H W

    def divergence(self, features: Features) -> Tensor:
        """Sum over pairs the divergence of a stand-in's part from what it stands for."""
        present = features.present[1]
        parts = torch.unflatten(full_precision(features.selected(1)), 2, (PARTS, -1))
        log = parts.log_softmax(dim=3)  # B M P C D H W
        total = log.new_zeros(len(present))
        for slot, name in enumerate(MODALITIES):
            for rank, partner in enumerate(PARTNERS[name], start=1):
                source = MODALITIES.index(partner)
                target, made = log[:, slot, 0], log[:, source, self.parts[slot, rank]]
                each = (target.exp() * (target - made)).flatten(1).mean(dim=1)
                total = total + torch.where(present[:, slot] & present[:, source], each, 0)
        return total.mean()


class ChannelSort(nn.Module):
    """Convolve, and add to channel k the channel whose score has rank k; then as `Block`."""

    def __init__(self, width: int, *, descending: bool = False) -> None:
        super().__init__()
        self.descending = descending
        self.conv = nn.Conv3d(width, width, kernel_size=3, padding=1)
        self.score = nn.Sequential(
            nn.Linear(width, width // 4), nn.LeakyReLU(0.01), nn.Linear(width // 4, width)
        ).requires_grad_(False)
        self.first = nn.Sequential(nn.InstanceNorm3d(width), nn.LeakyReLU(0.01, inplace=True))
        self.last = nn.Sequential(
            nn.InstanceNorm3d(width, affine=True), nn.LeakyReLU(0.01, inplace=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.conv(x))
        order = self.order(x)
        rows = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
        added: Tensor = self.last(x + x[rows, order])
        return added

    @torch.no_grad()
    def order(self, x: Tensor) -> Tensor:
        """Rank the channels of each sample, B×C; half precision would make ties."""
        with without_autocast(x):
            scores = self.score(full_precision(x).mean(dim=(2, 3, 4))).sigmoid()
        return scores.argsort(dim=1, descending=self.descending)
