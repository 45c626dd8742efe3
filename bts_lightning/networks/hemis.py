"""U-HeMIS and U-HVED: four small encoders, fused at each scale by statistics over modalities."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bts_lightning.modalities import MODALITIES
from bts_lightning.networks.backbone import Backbone, Features, Output, over
from bts_lightning.networks.presence import encode_present


class UHeMIS(Backbone):
    """Fuse the mean and the variance over the present modalities at each of four scales.

    Havaei et al.: HeMIS, MICCAI 2016, made a U-Net by Dorent et al., MICCAI 2019. Official code:
    github.com/ReubenDo/U-HVED (MIT, TensorFlow). What tables since 2019 call HeMIS is this one.

    Deviations: none in the wiring; no golden output exists, the counts of weights are those of the
    construction.

    Args:
        width: channels of the first block; they double with each halving.
        legacy_zeros: mean and unbiased variance over all four slots, absent ones as zeros, as the
            port in A2FSeg's repository has it. The default counts present modalities only.
        out_channels: 3 for regions, 4 for labels.

    Example:
        >>> net = UHeMIS(width=4).eval()
        >>> net(torch.randn(1, 4, 16, 16, 16), torch.ones(1, 4, dtype=torch.bool)).logits.shape
        torch.Size([1, 4, 16, 16, 16])
    """

    divisor = 8
    least_width = 2
    skip_absent = True
    fused_levels = (0, 1, 2, 3)

    def __init__(
        self, *, width: int = 8, legacy_zeros: bool = False, out_channels: int = 4
    ) -> None:
        super().__init__(out_channels, width=width)
        self.legacy_zeros = legacy_zeros
        widths = [width * 2**level for level in self.fused_levels]
        halves = [w // 2 for w in widths]
        self.encoders = nn.ModuleList(Encoder(widths, halves) for _ in MODALITIES)
        self.decoder = Decoder(widths, widths, out_channels)

    @classmethod
    def small(cls) -> dict[str, Any]:
        """Give arguments of the same wiring that run in a blink."""
        return {"width": 4}

    def encode_levels(self, image: Tensor, present: Tensor) -> tuple[Tensor, ...]:
        """Run each encoder on its modality, for the samples that have it."""
        return encode_present(self.encoders, image, present)

    def decode(self, features: Features) -> Output:
        """Fuse each scale and decode."""
        return self.decoder([self._fuse(features, level) for level in self.fused_levels])

    def _fuse(self, features: Features, level: int) -> Tensor:
        x, present = features.selected(level), features.present[level]  # B M C D H W
        if self.legacy_zeros:
            return torch.cat([x.mean(dim=1), x.var(dim=1, unbiased=True)], dim=1)
        keep = over(present, x)
        count = keep.sum(dim=1)
        mean = x.sum(dim=1) / count
        # From the deviations, not from squares: E[x²] - E[x]² cancels in half precision.
        deviation = torch.where(keep, x - mean.unsqueeze(1), 0)
        return torch.cat([mean, deviation.square().sum(dim=1) / count], dim=1)


class Encoder(nn.Module):
    """Encode one modality into four levels; `outputs` are their channels, finest first."""

    def __init__(self, widths: Sequence[int], outputs: Sequence[int]) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(1, widths[0], kernel_size=1, bias=False), nn.LeakyReLU(0.01)
        )
        inputs = [widths[0], *outputs[:-1]]
        self.blocks = nn.ModuleList(
            double_convolution(*sizes) for sizes in zip(inputs, widths, outputs, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Halve the resolution before each block but the first."""
        x = self.stem(x)
        levels = [self.blocks[0](x)]
        for block in self.blocks[1:]:
            levels.append(block(F.max_pool3d(levels[-1], kernel_size=2)))
        return levels


class Decoder(nn.Module):
    """Double the resolution three times, joining the fused level of each; then predict."""

    def __init__(self, fused: Sequence[int], widths: Sequence[int], out_channels: int) -> None:
        super().__init__()
        coarser = [*(w // 2 for w in widths[1:-1]), fused[-1]]
        self.blocks = nn.ModuleList(
            double_convolution(coarse + skip, width, width // 2)
            for coarse, skip, width in zip(coarser, fused, widths, strict=False)
        )
        self.head = nn.Conv3d(widths[0] // 2, out_channels, kernel_size=1, bias=False)

    def forward(self, levels: Sequence[Tensor]) -> Output:
        """Start from the coarsest level."""
        x = levels[-1]
        for level in reversed(range(len(self.blocks))):
            up = F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=True)
            x = self.blocks[level](torch.cat([up, levels[level]], dim=1))
        return Output(self.head(x), embedding=x)


def double_convolution(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """Normalise, activate and convolve, twice."""
    return nn.Sequential(
        *(nn.InstanceNorm3d(inputs, eps=1e-6, affine=True), nn.LeakyReLU(0.01)),
        nn.Conv3d(inputs, width, kernel_size=3, padding=1, bias=False),
        *(nn.InstanceNorm3d(width, eps=1e-6, affine=True), nn.LeakyReLU(0.01)),
        nn.Conv3d(width, outputs, kernel_size=3, padding=1, bias=False),
    )
