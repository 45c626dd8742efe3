"""An input adaptor: single-channel maps of the modalities, aligned ahead of early fusion."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bts_lightning.errors import ConfigError
from bts_lightning.modalities import MODALITIES
from bts_lightning.networks.backbone import Backbone, Features, Output, over


class InputAdaptor(Backbone):
    """Put two convolutions before a network of early fusion and align the maps that they make.

    Liu et al.: Mind the Gap: Promoting Missing Modality Brain Tumor Segmentation with Alignment,
    arXiv 2409.19366. The only code is a draft in the history of MedMAP's repository (e406a74; no
    licence, nothing was copied): two blocks of 3³ convolution without bias, batch normalisation and
    ReLU on four channels, each channel of the result taken for one modality's latent f, and the
    penalty mean (f - p)² to p = Σ w f, in which f is detached so that w alone follows.

    Deviations (the value in brackets is the draft's):
        `mixing="grouped"` ["dense"]: each modality has kernels of its own. Dense ones mix the
        modalities, so that a channel of the result is a modality in name only.
        The weights are a softmax; the draft computes it and then divides by the sum, which may be
        zero or negative. They start equal, in the draft at random.
        The penalty has the ½ of the released MedMAP; the draft's is twice that.

    As f is detached in p, the penalty is smallest for equal weights and never moves them away from
    there: what is learned are the convolutions.

    Args:
        backbone: a network that mixes the modalities in its first layer.
        mixing: see above.
        weight: factor of the penalty `align`; 0 leaves the convolutions alone.

    Example:
        >>> net = InputAdaptor(UNet(width=4, poolings=2)).eval()
        >>> present = torch.ones(1, 4, dtype=torch.bool)
        >>> net(torch.randn(1, 4, 16, 16, 16), present).logits.shape
        torch.Size([1, 3, 16, 16, 16])
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        mixing: Literal["grouped", "dense"] = "grouped",
        weight: float = 1.0,
    ) -> None:
        super().__init__(backbone.out_channels)
        if backbone.fused_levels:
            raise ConfigError(
                f"{type(backbone).__name__} encodes each modality alone and needs no input adaptor;"
                " align its features with the mix-in medmap"
            )
        channels = len(MODALITIES)
        groups = channels if mixing == "grouped" else 1
        self.backbone = backbone
        self.divisor = backbone.divisor
        self.leaks = backbone.leaks
        self.frame, self.misplaces = backbone.frame, backbone.misplaces
        self.learns_from_dropped = backbone.learns_from_dropped
        self.is_grouped = mixing == "grouped"
        self.fused_levels = (0,) if self.is_grouped else ()
        self.weight = weight
        self.adapt = nn.Sequential(*(_block(channels, groups) for _ in range(2)))
        self.theta = nn.Parameter(torch.zeros(channels))

    def check_size(self, size: tuple[int, ...]) -> None:
        """Refuse what the network inside refuses."""
        self.backbone.check_size(size)

    def encode_levels(self, image: Tensor, present: Tensor) -> tuple[Tensor, ...]:
        """Make the maps; dense ones depend on the subset, so `decode` makes them of the image."""
        return self.backbone.encode_levels(self.adapt(image) if self.is_grouped else image, present)

    def decode(self, features: Features) -> Output:
        """Run the network inside on the maps of the present modalities."""
        maps = self._maps(features)
        output = self.backbone.decode(replace(features, levels=(maps, *features.levels[1:])))
        if not self.training:
            return output
        penalty = self.weight * self.pull(maps, features.present[0])
        return replace(output, penalties={**output.penalties, "align": penalty})

    def comparable(self, features: Features) -> dict[int, Tensor]:
        """Give the maps, each of which stands for a modality."""
        return {0: self._maps(features, self._uncounted)}

    def anchors(self, features: Features) -> dict[int, Tensor]:
        """Mix the maps of the present modalities."""
        return {0: self.mix(self._maps(features, self._uncounted), features.present[0])}

    def mix(self, maps: Tensor, present: Tensor) -> Tensor:
        """Weigh what is present, B×4×1×D×H×W to B×1×D×H×W, in full precision."""
        weights = self.theta.float().masked_fill(~present, float("-inf")).softmax(dim=1)
        kept = torch.where(over(present, maps), maps.float(), 0.0)
        return (over(weights, maps) * kept).sum(dim=1)

    def pull(self, maps: Tensor, present: Tensor) -> Tensor:
        """Measure ½ mean (f - p)² over what is present, then over the batch."""
        p = self.mix(maps.detach(), present).unsqueeze(1)
        # What is absent takes the value of the anchor itself, at distance zero.
        distance = (
            (torch.where(over(present, maps), maps.float(), p) - p).square().flatten(2).mean(2)
        )
        return (0.5 * distance.sum(dim=1) / present.sum(dim=1)).mean()

    def _maps(self, features: Features, adapt: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        if self.is_grouped:
            return features.levels[0]
        adapted: Tensor = (adapt or self.adapt)(features.selected(0).squeeze(2))
        return adapted.unsqueeze(2)  # B M 1 D H W

    def _uncounted(self, image: Tensor) -> Tensor:
        """Make the maps once more; batch normalisation has counted this batch already."""
        buffers = {name: buffer.clone() for name, buffer in self.adapt.named_buffers()}
        adapted: Tensor = functional_call(self.adapt, buffers, (image,))
        return adapted

    @classmethod
    def small(cls) -> dict[str, Any]:
        """Give no arguments: the size is that of the network inside."""
        return {}


def _block(channels: int, groups: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(channels, channels, 3, padding=1, groups=groups, bias=False),
        nn.BatchNorm3d(channels),
        nn.ReLU(),
    )
