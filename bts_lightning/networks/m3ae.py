"""M3AE: a learned image of the whole frame stands in for every modality that is absent."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bts_lightning.errors import ConfigError
from bts_lightning.modalities import MODALITIES
from bts_lightning.networks.acn import ACN
from bts_lightning.networks.backbone import Auxiliary, Features, Output, over
from bts_lightning.networks.modules import Modules

# Axes x, y, z of the files of BraTS.
BRATS_FRAME = (240, 240, 155)


class M3AE(ACN):
    """Segment four channels, of which the absent ones are cut from a substitute image.

    Liu et al.: M3AE: Multimodal Representation Learning for Brain Tumor Segmentation with Missing
    Modalities, AAAI 2023. Official code: github.com/ccarliu/m3ae at fdb2800 (AGPL-3.0; nothing was
    copied, only facts were used).

    The substitute has a value for each voxel of the frame, and is cut where the patch lies in it,
    so that the network must be told (`Backbone.frame`). It is learned by
    `distillation.masked.MaskedAutoencodingTask` and constant afterwards. Nothing else tells the
    network what is missing. The U-Net is ACN's without dropout; nothing of it is shared between
    subsets.

    Deviations:
        An absent channel is replaced by selection; there it is multiplied by 0, so that a NaN of it
        comes through. `substitute_frame="released"` cuts, in evaluation alone, at the place that
        the patch has in the cropped image, as the released test does: off by tens of voxels.
        Beyond the frame, where a window is padded, the nearest voxel of the substitute stands.
        Heads of deep supervision are computed in training only.

    Args:
        width: channels of the finest level, a multiple of 8.
        frame: the grid of the files, along each array axis; no case may be larger.
        coarse: voxels of the frame, along each axis, that share one of the substitute (ours).
        substitute_frame: see above.
        deep_supervision: have heads at half and a quarter of the resolution.

    Example:
        >>> net = M3AE(width=8, coarse=16).eval()
        >>> present = torch.tensor([[False, True, False, True]])
        >>> place = torch.tensor([[[100, 1], [80, 1], [60, 1]]])
        >>> net(torch.randn(1, 4, 16, 16, 16), present, place=place).logits.shape
        torch.Size([1, 3, 16, 16, 16])
    """

    def __init__(
        self,
        *,
        width: int = 16,
        frame: Sequence[int] = BRATS_FRAME,
        coarse: int = 1,
        substitute_frame: Literal["full", "released"] = "full",
        deep_supervision: bool = True,
        out_channels: int = 3,
    ) -> None:
        if len(frame) != 3 or min(frame) < 1:
            raise ConfigError(f"frame is {list(frame)}; give the length of each of the three axes")
        if coarse < 1:
            raise ConfigError(f"coarse is {coarse}; give 1 or more voxels")
        super().__init__(width=width, dropout=0.0, out_channels=out_channels)
        x, y, z = frame
        self.frame = (x, y, z)
        self.coarse = coarse
        self.misplaces = substitute_frame == "released"
        size = [-(-length // coarse) for length in frame]
        self.substitute = nn.Parameter(torch.randn(1, len(MODALITIES), *size), requires_grad=False)
        self.deep = Modules(
            nn.Conv3d(w, out_channels, 1)
            for w in ((2 * width, 4 * width) if deep_supervision else ())
        )

    @classmethod
    def small(cls) -> dict[str, Any]:
        """Give arguments of the same wiring that run in a blink."""
        return {"width": 8, "coarse": 8}

    def seen(self, features: Features) -> Tensor:
        """Give the images, the substitute in place of what is absent."""
        image = features.levels[0].squeeze(2)
        return torch.where(over(features.present[0], image), image, self.cut(features))

    def cut(self, features: Features) -> Tensor:
        """Cut the substitute of each patch, B×M×D×H×W."""
        image, place = features.levels[0].squeeze(2), features.place
        if place is None:
            corner = self._cut(torch.tensor([[0, 1]] * 3, device=image.device), image)
            return corner.expand(image.shape[0], *corner.shape)
        return torch.stack([self._cut(where, image) for where in place.unbind()])

    def _cut(self, where: Tensor, image: Tensor) -> Tensor:
        assert self.frame is not None
        x = self.substitute[0]
        for axis, (n, length) in enumerate(zip(image.shape[2:], self.frame, strict=True)):
            first, step = where[axis].unbind()
            index = first + step * torch.arange(n, device=image.device)
            x = x.index_select(axis + 1, index.clamp(0, length - 1) // self.coarse)
        return x.to(image.dtype)

    def decode_with_depth(self, features: Features) -> tuple[Output, Tensor]:
        """Also give the deepest features, which self-distillation compares."""
        return self.read(self.seen(features))

    def read(self, x: Tensor) -> tuple[Output, Tensor]:
        """Predict from four full channels; give the deepest features as well."""
        levels, _ = self.contracted(x)
        decoded = self.expanded(levels, levels[-1])
        heads = enumerate(self.deep, start=1) if self.training else ()
        auxiliary = [self.enlarged(head(decoded[level]), level) for level, head in heads]
        return replace(self.predicted(decoded), auxiliary=tuple(auxiliary)), levels[-1]

    def enlarged(self, logits: Tensor, level: int) -> Auxiliary:
        """Bring the prediction of a level to full size, where it meets the label."""
        size = F.interpolate(logits, scale_factor=2**level, mode="trilinear", align_corners=True)
        return Auxiliary(f"deep/{2**level}", size, coarse=logits)
