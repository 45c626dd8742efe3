"""RFNet: region-aware fusion of four separately encoded modalities."""

from typing import Any

import torch
from torch import Tensor, nn

from bts_lightning.modalities import MODALITIES
from bts_lightning.networks.backbone import Backbone, Features, Output, Weigher
from bts_lightning.networks.modules import Modules
from bts_lightning.networks.presence import encode_each, full_precision, without_autocast
from bts_lightning.networks.pyramid import (
    Encoder,
    ModalityDecoder,
    Unit,
    bottleneck,
    enlarged_head,
    enlarging,
    initialise,
    joining,
    modality_auxiliaries,
    to_maps,
)


class RFNet(Backbone):
    """Fuse modalities region by region, guided by probability maps that are learned on the way.

    Ding, Yu, Yang: RFNet: Region-aware Fusion Network for Incomplete Multi-modal Brain Tumor
    Segmentation, ICCV 2021. Official code: github.com/dyh127/RFNet at 1e475fa (no licence; nothing
    was copied).

    Deviations, none of which changes a number:
        The region features are batched matrix products; the official code expands every modality
        by every region. Heads of single modalities and probability maps at full size exist in
        training only. With 3 output channels the maps are sigmoids of regions.

    Example:
        >>> net = RFNet(width=4).eval()
        >>> present = torch.tensor([[True, False, True, True]])
        >>> net(torch.randn(1, 4, 16, 16, 16), present).logits.shape
        torch.Size([1, 4, 16, 16, 16])
    """

    divisor = 8
    least_width = 4
    learns_from_dropped = True  # the head of single modalities sees all that the case has

    def __init__(self, *, width: int = 16, out_channels: int = 4) -> None:
        super().__init__(out_channels, width=width)
        widths = [width * 2**level for level in range(4)]
        self.fused_levels = tuple(range(len(widths)))
        self.encoders = nn.ModuleList(Encoder(widths) for _ in MODALITIES)
        self.maps = nn.ModuleList(
            RegionMaps(w, out_channels, guided=w != widths[-1]) for w in widths
        )
        self.fusions = Modules(
            RegionFusion(w, out_channels, Weigher("attention", level))
            for level, w in enumerate(widths)
        )
        self.enlarge = nn.ModuleList(enlarging(2 * w, w) for w in widths[:-1])
        self.join = nn.ModuleList(joining(w) for w in widths[:-1])
        self.head = nn.Conv3d(width, out_channels, kernel_size=1)
        self.modality_decoder = ModalityDecoder(widths, out_channels)
        initialise(self, nn.Conv3d, nn.Linear)

    @classmethod
    def small(cls) -> dict[str, Any]:
        """Give arguments of the same wiring that run in a blink."""
        return {"width": 4}

    def encode_levels(self, image: Tensor, present: Tensor) -> tuple[Tensor, ...]:
        return encode_each(self.encoders, image)

    def weighers(self) -> tuple[Weigher, ...]:
        """Tell the weights of the regions, mixed at each voxel by their probabilities."""
        return tuple(fusion.weigher for fusion in self.fusions)

    def decode(self, features: Features) -> Output:
        x: Tensor | None = None
        deepest: Tensor | None = None
        maps: dict[int, Tensor] = {}
        for level in reversed(self.fused_levels):
            modalities = features.selected(level)  # B M C D H W
            enlarged = None if x is None else self.enlarge[level](x)
            maps[level] = self.maps[level](modalities, enlarged)
            # The maps learn from their own loss alone.
            fused = self.fusions[level](modalities, maps[level].detach())
            x = fused if enlarged is None else self.join[level](torch.cat([fused, enlarged], dim=1))
            deepest = fused if deepest is None else deepest
        logits = self.head(x)
        if not self.training:
            return Output(logits, embedding=x)
        regions = tuple(
            enlarged_head(f"region_maps/{level}", maps[level], 2**level)
            for level in self.fused_levels
        )
        heads = modality_auxiliaries(self.modality_decoder, features, self.fused_levels)
        return Output(logits, auxiliary=heads + regions, embedding=x, fused=deepest)


class RegionMaps(nn.Module):
    """Predict coarse probability maps of the regions from all present modalities."""

    def __init__(self, width: int, regions: int, *, guided: bool) -> None:
        super().__init__()
        self.embed = bottleneck(len(MODALITIES) * width, width // 4, width)
        # 16 is fixed in the official code, whatever the width.
        self.head = nn.Sequential(
            Unit(2 * width if guided else width, 16, kernel=1), nn.Conv3d(16, regions, 1)
        )

    def forward(self, modalities: Tensor, guide: Tensor | None) -> Tensor:
        x = self.embed(modalities.flatten(1, 2))
        return to_maps(self.head(x if guide is None else torch.cat([guide, x], dim=1)))


class RegionFusion(nn.Module):
    """Weigh the modalities for each region by what they show there, and fuse the weighted sums."""

    def __init__(self, width: int, regions: int, weigher: Weigher) -> None:
        super().__init__()
        self.weigher = weigher
        modalities = len(MODALITIES)
        self.weigh = nn.ModuleList(
            nn.Sequential(
                nn.Linear(modalities * width + 1, 128),
                nn.LeakyReLU(0.2),
                nn.Linear(128, modalities),
                nn.Sigmoid(),
            )
            for _ in range(regions)
        )
        self.fuse = bottleneck(regions * width, width, width // 2)
        self.shortcut = bottleneck(modalities * width, width, width // 2)

    def forward(self, modalities: Tensor, maps: Tensor) -> Tensor:
        weights = self.weights(modalities, maps)  # B R M
        if self.weigher.listener:
            mixture = maps / maps.sum(dim=1, keepdim=True).clamp_min(1e-12)  # B R D H W
            self.weigher.listener(torch.einsum("brm,brdhw->bmdhw", weights, mixture))
        weights = weights.to(modalities.dtype)
        # sum_m w·f·P = P · sum_m w·f, so no tensor of all modalities times all regions is needed.
        mixed = torch.matmul(weights, modalities.flatten(2)).view(
            *weights.shape[:2], *modalities.shape[2:]
        )  # B R C D H W
        regions = mixed * maps.to(mixed.dtype).unsqueeze(2)
        return torch.cat(
            [self.fuse(regions.flatten(1, 2)), self.shortcut(modalities.flatten(1, 2))], dim=1
        )

    def weights(self, modalities: Tensor, maps: Tensor) -> Tensor:
        """Judge each modality from its mean features inside each region, as B×R×M in (0, 1)."""
        # Sums over half a million voxels overflow or round badly in half precision.
        with without_autocast(maps):
            voxels = maps.flatten(2)  # B R V
            # Not only a guard: the official network reads the share with this added, too.
            share = voxels.mean(dim=2, keepdim=True) + 1e-7  # B R 1
            flat = full_precision(modalities).flatten(3).flatten(1, 2)  # B (M C) V
            means = voxels @ flat.transpose(1, 2) / voxels.shape[2] / share  # B R (M C)
            described = torch.cat([means, share], dim=2)
            return torch.stack([mlp(described[:, r]) for r, mlp in enumerate(self.weigh)], dim=1)
