"""How an image looks, in a few numbers; and an image again, from what it shows and how it looks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bts_lightning.errors import ConfigError
from bts_lightning.modalities import MODALITIES
from bts_lightning.networks.backbone import Backbone, over, weightless
from bts_lightning.networks.modules import Modules
from bts_lightning.networks.presence import full_precision, without_autocast


@dataclass(frozen=True)
class Painted:
    """What came of painting all images of a batch.

    Attributes:
        error: B×M, the mean squared difference from each image.
        divergence: B×M, of each style's spread from a standard normal one, a mean over channels.
        styles: B×M×S.
    """

    error: Tensor
    divergence: Tensor
    styles: Tensor


class Painting(nn.Module):
    """Paint each image again, from what a network fused of all present ones and its own style.

    Args:
        net: learns from dropped images and gives `Output.fused`.
        styles: numbers of a style.
    """

    def __init__(self, net: Backbone, *, styles: int = 128) -> None:
        super().__init__()
        widths = widths_of(net)
        self.styles = nn.ModuleList(StyleEncoder(widths[0], styles) for _ in MODALITIES)
        self.painters = Modules(
            Painter(
                widths,
                styles=styles,
                enlarge=nn.Upsample(scale_factor=2, mode="trilinear"),
                norm=lambda _, width: nn.GroupNorm(1, width, affine=False),
            )
            for _ in MODALITIES
        )

    def forward(self, image: Tensor, content: Tensor) -> Painted:
        """Paint B×M×D×H×W from B×C×d×h×w."""
        errors, divergences, styles = [], [], []
        for m, (encode, painter) in enumerate(zip(self.styles, self.painters, strict=True)):
            target = image[:, m : m + 1]
            style = encode(target).flatten(1)
            scale, shift = painter.affine(style)
            off = full_precision(painter(content, scale, shift)) - full_precision(target)
            errors.append(off.square().flatten(1).mean(dim=1))
            divergences.append(divergence_from_normal(shift, scale) / shift.shape[1])
            styles.append(full_precision(style))
        stacked = (torch.stack(each, dim=1) for each in (errors, divergences, styles))
        return Painted(*stacked)


def widths_of(net: Backbone) -> list[int]:
    """Give the widths of a painter, finest first, from what the network would give it."""
    name = type(net).__name__
    needs = "use rfnet, or another one that gives `Output.fused` and learns from dropped images"
    if not net.learns_from_dropped or not net.fused_levels:
        raise ConfigError(f"{name} gives nothing to paint images from; {needs}")
    copy, image, present = weightless(net)
    fused = copy.train()(image, present, present).fused
    if fused is None:
        raise ConfigError(f"{name} gives nothing to paint images from; {needs}")
    halvings = (image.shape[-1] // fused.shape[-1]).bit_length() - 1
    return [fused.shape[1] // 2**level for level in reversed(range(halvings + 1))]


class StyleEncoder(nn.Sequential):
    """Describe the looks of an image by a few numbers, without normalising anything."""

    def __init__(self, width: int, styles: int) -> None:
        widths = [width * factor for factor in (2, 4, 8, 8, 8)]
        layers: list[nn.Module] = [reflecting(1, widths[0], 7), nn.ReLU()]
        for a, b in pairwise(widths):
            layers += [nn.Conv3d(a, b, 4, stride=2, padding=1, padding_mode="reflect"), nn.ReLU()]
        layers += [nn.AdaptiveAvgPool3d(1), nn.Conv3d(widths[-1], styles, kernel_size=1)]
        super().__init__(*layers)


class Painter(nn.Module):
    """Decode an image from the deepest content, whose statistics the style of a modality sets.

    Args:
        widths: of the levels, finest first; the last is that of the content.
        styles: numbers of a style.
        enlarge: doubles a map.
        norm: makes the norm of a level, of its width.
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        styles: int,
        enlarge: nn.Module,
        norm: Callable[[int, int], nn.Module],
    ) -> None:
        super().__init__()
        deepest = widths[-1]
        self.read = nn.Sequential(
            *(nn.Linear(styles, deepest), nn.ReLU()), *(nn.Linear(deepest, deepest), nn.ReLU())
        )
        self.scale = nn.Linear(deepest, deepest)
        self.shift = nn.Linear(deepest, deepest)
        self.blocks = Modules(
            Modules(reflecting(deepest, deepest, 3) for _ in range(2)) for _ in range(4)
        )
        steps: list[nn.Module] = []
        for level in reversed(range(len(widths) - 1)):
            steps += [
                enlarge,
                nn.Conv3d(widths[level + 1], widths[level], kernel_size=5, padding=2),
                norm(level, widths[level]),
                nn.ReLU(),
            ]
        self.enlarge = nn.Sequential(*steps, reflecting(widths[0], 1, 7))

    def affine(self, style: Tensor) -> tuple[Tensor, Tensor]:
        """Turn a style, B×S, into the scale and the shift of each channel, B×C."""
        read = self.read(style)
        return self.scale(read), self.shift(read)

    def forward(self, content: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        x = content
        for first, second in self.blocks:
            inner = F.relu(restyled(first(x), scale, shift))
            x = x + restyled(second(inner), scale, shift)
        painted: Tensor = self.enlarge(x)
        return painted


def reflecting(inputs: int, outputs: int, kernel: int) -> nn.Conv3d:
    """Convolve an image that is mirrored at its border."""
    return nn.Conv3d(inputs, outputs, kernel, padding=kernel // 2, padding_mode="reflect")


def restyled(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Give each channel of each sample a new spread and mean (adaptive instance normalisation)."""
    precise = full_precision(x)
    axes = (2, 3, 4)
    spread = (precise.var(dim=axes, keepdim=True) + 1e-5).sqrt()
    centred = (precise - precise.mean(dim=axes, keepdim=True)) / spread
    return (over(scale, x) * centred + over(shift, x)).to(x.dtype)


def divergence_from_normal(mean: Tensor, deviation: Tensor) -> Tensor:
    """Give KL(N(mean, deviation²) ‖ N(0, 1)) of each sample, summed over channels."""
    with without_autocast(mean):
        mean, variance = full_precision(mean), full_precision(deviation).square()
        # A deviation of zero, which half precision can round to, is infinitely far from 1.
        log = variance.clamp_min(1e-12).log()
        return 0.5 * (mean.square() + variance - 1 - log).sum(dim=1)
