"""SMU-Net: ACN's path, whose deepest features are joined by those of its style."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bts_lightning.modalities import MODALITIES
from bts_lightning.networks.acn import ACN
from bts_lightning.networks.backbone import Features, Output

# The first channel of a path, which a table of official names cannot move: it knows no subset.
FIRST = MODALITIES.index("flair")


class SMUNet(ACN):
    """Segment from a fixed subset, early fusion; `StyleTask` trains it beside a full path.

    Azad, Khosravi, Merhof: SMU-Net: Style matching U-Net for brain tumor segmentation with missing
    modalities, MIDL 2022. Official code: github.com/rezazad68/smunet at 251f3ad (MIT; nothing was
    copied).

    The style of an image is a mix of three scales; from style and content, the deepest features,
    the decoder starts. The two paths do not see each other: losses pull them together.

    Deviations: in evaluation dropout is off, which the official code never does. The maps are
    background, NCR/NET, ED, ET; there ED, NCR/NET, ET, background.

    The arguments are those of `ACN`.

    Example:
        >>> net = SMUNet(width=8, reads="t1c+flair").eval()
        >>> present = torch.tensor([[False, True, False, True]])
        >>> net(torch.randn(1, 4, 16, 16, 16), present).logits.shape
        torch.Size([1, 4, 16, 16, 16])
    """

    def __init__(self, *, width: int = 16, **options: Any) -> None:
        super().__init__(width=width, **options)
        self.reads.sort(key=lambda m: m != FIRST)
        deepest = self.deepest
        self.style = nn.Conv3d(deepest // 2 + 2 * deepest, deepest, kernel_size=1)
        self.merge = nn.Conv3d(2 * deepest, deepest, kernel_size=1)
        self.deepest = 2 * deepest

    def decode_with_depth(self, features: Features) -> tuple[Output, Tensor]:
        """Also give the style and, behind it, the content, which co-training compares."""
        levels, halved = self.contracted(self.seen(features))
        content = levels[-1]
        style = self.style(torch.cat([F.max_pool3d(halved[-2], 2), halved[-1], content], dim=1))
        both = torch.cat([style, content], dim=1)
        return self.predicted(self.expanded(levels, self.dropout(self.merge(both)))), both
