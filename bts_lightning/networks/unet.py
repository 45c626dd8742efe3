"""The plain early-fusion U-Net: absent modalities are zero channels of the input."""

from typing import Any

import torch
from torch import Tensor

from bts_lightning.modalities import MODALITIES
from bts_lightning.networks.backbone import Backbone, Features, Output, over
from bts_lightning.networks.layers import (
    ContractingPath,
    ExpandingPath,
    deep_weights,
    halving_widths,
    initialise,
)


class UNet(Backbone):
    """Segment four channels at once, with nnU-Net's blocks, widths and deep supervision.

    Isensee et al.: nnU-Net, Nature Methods 2021; the baseline of the missing-modality literature
    is this network on zero-filled input, for instance in github.com/Longzhong-Lin/DeMoSeg
    (Apache-2.0). Its features are the image itself, so each subset costs a whole pass.

    Args:
        width: channels at full resolution; they double with each halving.
        poolings: how often the resolution is halved; sizes must be multiples of 2^poolings.
        width_limit: no level is wider. 32, 5, 320 is nnU-Net's; 16, 4, 256 a small one.
        availability_channels: give the network four more channels that say which modality is
            there, so that it can tell a dark image from an absent one.
        deep_supervision: in training also predict at the coarser decoder levels.
        out_channels: 3 for regions, 4 for labels.

    Example:
        >>> net = UNet(width=4, poolings=2).eval()
        >>> present = torch.tensor([[False, True, False, True]])
        >>> net(torch.randn(1, 4, 16, 16, 16), present).logits.shape
        torch.Size([1, 3, 16, 16, 16])
    """

    def __init__(
        self,
        *,
        width: int = 32,
        poolings: int = 5,
        width_limit: int = 320,
        availability_channels: bool = False,
        deep_supervision: bool = True,
        out_channels: int = 3,
    ) -> None:
        super().__init__(out_channels, width=width, poolings=poolings, width_limit=width_limit)
        self.divisor = 2**poolings
        self.availability_channels = availability_channels
        self.deep_supervision = deep_supervision
        widths = halving_widths(width, poolings, width_limit)
        inputs = len(MODALITIES) * (2 if availability_channels else 1)
        self.contract = ContractingPath(inputs, widths)
        self.expand = ExpandingPath(widths, out_channels, heads=poolings if deep_supervision else 1)
        initialise(self)

    @classmethod
    def small(cls) -> dict[str, Any]:
        """Give arguments of the same wiring that run in a blink."""
        return {"width": 4, "poolings": 3, "width_limit": 16}

    def encode_levels(self, image: Tensor, present: Tensor) -> tuple[Tensor, ...]:
        """Give the image as its own and only level."""
        return (image.unsqueeze(2),)  # B M 1 D H W

    def decode(self, features: Features) -> Output:
        """Run the whole network on the channels that may be seen."""
        x = features.selected(0).squeeze(2)
        if self.availability_channels:
            x = torch.cat([x, over(features.present[0].to(x.dtype), x).expand_as(x)], dim=1)
        decoded = self.expand(self.contract(x))
        logits = self.expand.heads[0](decoded[0])
        if not self.training or not self.deep_supervision:
            return Output(logits, embedding=decoded[0])
        return Output(
            logits,
            weight=deep_weights(len(self.expand.heads))[0],
            auxiliary=self.expand.supervise(decoded, "deep", first=1),
            embedding=decoded[0],
        )
