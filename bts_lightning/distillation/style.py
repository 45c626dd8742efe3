"""SMU-Net: a path that sees a subset takes over content and style of one that sees all."""

from itertools import pairwise
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from bts_lightning.distillation.paths import TwoPathsTask, chain
from bts_lightning.networks.backbone import Backbone

# What the discriminator's last convolution reads: at 160×192×128 voxels its whole map.
LAST = (2, 3, 2)


class StyleTask(TwoPathsTask):
    """Pull the content of both paths together, and the style of the missing one to the full one's.

    Azad, Khosravi, Merhof: SMU-Net, MIDL 2022; official code at 251f3ad (MIT; nothing was copied).
    The style learns to look like that of the full path to a discriminator (`adversarial`, as in the
    paper's table), or to have the same products of channels (`gram`), or `both`. As `released`, it
    does both, with a Gram term of 1e-17 that moves no weight in single precision.

    Deviations: `gram_weight` is ours: with it the gradient of the style's convolution begins as
    large as that of the segmentation (5e-3 beside 7e-3, on noise of 32³). A sample has products of
    its own; officially the channels of a batch, which is one sample, are multiplied. Features too
    small for the discriminator are padded with zeros to what 128×192×128 voxels give; what it says
    of larger ones is averaged.

    Args:
        content_weight: of the squared difference of contents.
        style: see above.
        adversarial_weight: of what fools the discriminator.
        gram_weight: of the squared difference of mean products.

    The others are those of `TwoPathsTask`.
    """

    needs = ("style", "smunet")

    def __init__(
        self,
        net: Backbone,
        *,
        peer_share: float = 0.4,
        content_weight: float = 0.2,
        style: Literal["adversarial", "gram", "both", "released"] = "adversarial",
        adversarial_weight: float = 0.0002,
        gram_weight: float = 0.2,
        **options: Any,
    ) -> None:
        super().__init__(net, peer_share=peer_share, **options)
        self.judges_style = style_discriminator(self.depth // 2)
        self.content_weight = content_weight
        self.style = style
        self.adversarial_weight = adversarial_weight
        self.gram_weight = gram_weight

    def matched(
        self, maps: tuple[Tensor, Tensor], depths: tuple[Tensor, Tensor]
    ) -> dict[str, Tensor]:
        """Compare contents and styles."""
        (full_style, full), (style, content) = (depth.chunk(2, dim=1) for depth in depths)
        seen = enlarged(full_style), enlarged(style)
        # A weight of zero, not a term left out: the discriminator keeps its gradient.
        fools = 0.0 if self.style == "gram" else self.adversarial_weight
        terms = self.judged("style", self.judges_style, seen, fools=fools, learns=1.0)
        terms["content"] = self.content_weight * F.mse_loss(content, full)
        if self.style != "adversarial":
            released = self.style == "released"
            weight = released_weight(full_style) if released else self.gram_weight
            terms["gram"] = weight * gram_difference(full_style, style)
        return terms


def gram_difference(full: Tensor, missing: Tensor) -> Tensor:
    """Give the mean squared difference of the mean products of all pairs of channels."""
    products = []
    for style in (full, missing):
        flat = style.flatten(2)  # B C V
        products.append(flat @ flat.transpose(1, 2) / flat.shape[2])  # B C C
    return F.mse_loss(products[1], products[0])


def released_weight(style: Tensor) -> float:
    """Give the official weight: two squares divide it, and one leaves an axis out."""
    channels, first, second = style.shape[1:4]
    return 1e-4 / (4 * (channels * first * second) ** 2)


def style_discriminator(width: int) -> nn.Sequential:
    """Look at styles in windows of 16×24×16 features and more."""
    widths = [width, 64, 128, 256]
    halving = [nn.Conv3d(a, b, 4, 2, 1) for a, b in pairwise(widths)]
    return chain([*halving, nn.Conv3d(widths[-1], 1, LAST)])


def enlarged(style: Tensor) -> Tensor:
    """Put zeros around features that are too small for the discriminator."""
    least = [8 * size for size in LAST]
    pad: list[int] = []
    for size, needed in zip(style.shape[:1:-1], least[::-1], strict=True):
        pad += [0, max(0, needed - size)]
    return F.pad(style, pad)
