"""RobustSeg: what a modality shows apart from how it looks; gates fuse the former."""

from typing import Any

import torch
from torch import Tensor, nn

from bts_lightning.modalities import MODALITIES
from bts_lightning.networks.backbone import Backbone, Features, Output, Weigher
from bts_lightning.networks.modules import Modules
from bts_lightning.networks.painting import Painter, StyleEncoder, divergence_from_normal
from bts_lightning.networks.presence import encode_each, full_precision, stack_pyramids
from bts_lightning.networks.pyramid import Encoder, ModalityDecoder, Unit, Upsample, initialise

# Levels of `Features` in training, after the four of the contents.
STYLE, IMAGE = 4, 5
# Numbers that say how an image looks.
STYLES = 8
EPSILON = 1e-6


class RobustSeg(Backbone):
    """Fuse contents of the present modalities through gates; in training, paint each image again.

    Chen et al.: Robust Multimodal Brain Tumor Segmentation via Feature Disentanglement and Gated
    Fusion, MICCAI 2019. Official code: github.com/cchen-cc/Robust-Mseg (no licence, TensorFlow,
    BraTS 2015); met number by number in the PyTorch port of the IM-Fuse benchmark (fbbd48e, no
    licence; nothing was copied of either).

    Style encoders and image decoders serve training: from the fused contents and the style of one
    modality each decoder makes the image of that modality, also where dropout removed it.
    A segmentation needs 6,643,348 of the 42,136,376 weights (at 80³).

    Deviations: maps are enlarged trilinearly and painted images normalised by tables of voxels,
    both as in the port; the original repeats voxels, and its tables are of channels. The port
    leaves a dropout of 0.3 on in its content encoders, also in evaluation; the original declares
    and never uses it, as here. The divergence of styles is the original's, a sum over 128 channels;
    the port has their mean (`kl_weight=0.00078`). Both penalties are sums over the modalities that
    a case has. Evaluation runs no style encoders; the port does.

    Args:
        width: channels of the finest level.
        patch: edge of a training patch: the image decoders learn a table for each voxel. Evaluation
            takes any multiple of 8.
        reconstruction_weight: of the absolute error of the images; 0 leaves their decoders out,
            and then training takes any size too.
        kl_weight: of the divergence of each style from a standard normal one.
        out_channels: 4 for labels, 3 for regions.

    Example:
        >>> net = RobustSeg(width=4, patch=16).eval()
        >>> present = torch.tensor([[True, False, True, True]])
        >>> net(torch.randn(1, 4, 24, 24, 24), present).logits.shape
        torch.Size([1, 4, 24, 24, 24])
    """

    divisor = 8
    fused_levels = (0, 1, 2, 3)
    learns_from_dropped = True  # their images are painted as well

    def __init__(
        self,
        *,
        width: int = 16,
        patch: int = 80,
        reconstruction_weight: float = 0.1,
        kl_weight: float = 0.1,
        out_channels: int = 4,
    ) -> None:
        super().__init__(out_channels, width=width, patch=patch)
        self.check_patch(patch)
        self.cube = patch  # of training; evaluation takes more
        self.reconstruction_weight = reconstruction_weight
        self.kl_weight = kl_weight
        widths = [width * 2**level for level in self.fused_levels]
        painted = [m for m in MODALITIES if reconstruction_weight]
        self.encoders = nn.ModuleList(Encoder(widths) for _ in MODALITIES)
        self.fusions = Modules(
            GatedFusion(w, Weigher("gates", level)) for level, w in enumerate(widths)
        )
        self.decoder = ModalityDecoder(widths, out_channels)
        self.styles = nn.ModuleList(StyleEncoder(width, STYLES) for _ in painted)
        self.painters = Modules(
            Painter(
                widths,
                styles=STYLES,
                enlarge=Upsample(2),
                norm=lambda level, _: nn.LayerNorm((patch // 2**level,) * 3, eps=EPSILON),
            )
            for _ in painted
        )
        for module in self.modules():
            if isinstance(module, nn.InstanceNorm3d):
                module.eps = EPSILON
        initialise(self, nn.Conv3d, nn.Linear)

    @classmethod
    def small(cls) -> dict[str, Any]:
        """Give arguments of the same wiring that run in a blink."""
        return {"width": 4, "patch": 16}

    def check_size(self, size: tuple[int, ...]) -> None:
        """Refuse in training all but the size that the image decoders are made for."""
        super().check_size(size)
        fits = (self.cube,) * 3
        if self.training and self.painters and size != fits:
            raise ValueError(
                f"RobustSeg was built to learn from {fits} voxels, got {size}; use patches of "
                f"{self.cube}, build it with net.patch={size[0]} for cubes of that size, or with "
                "net.reconstruction_weight=0 for any"
            )

    def encode_levels(self, image: Tensor, present: Tensor) -> tuple[Tensor, ...]:
        """Give the contents of four scales; in training also the styles and what to paint."""
        contents = encode_each(self.encoders, image)
        if not self.training or not self.painters:
            return contents
        styles = stack_pyramids(lambda m: [self.styles[m](image[:, m : m + 1])])
        return *contents, *styles, image.unsqueeze(2)

    def weighers(self) -> tuple[Weigher, ...]:
        """Tell the gates of each scale."""
        return tuple(fusion.weigher for fusion in self.fusions)

    def decode(self, features: Features) -> Output:
        fused = [
            fusion(features.selected(level))
            for level, fusion in zip(self.fused_levels, self.fusions, strict=True)
        ]
        x = self.decoder.join_levels(fused)
        logits = self.decoder.head(x)
        is_painted = self.training and self.painters and features.heads
        penalties = self.paint(features, fused[-1]) if is_painted else {}
        return Output(logits, penalties=penalties, embedding=x)

    def paint(self, features: Features, content: Tensor) -> dict[str, Tensor]:
        """Make the image of each modality from the contents of all, and see how far it is off."""
        errors, divergences = [], []
        for m, painter in enumerate(self.painters):
            scale, shift = painter.affine(features.levels[STYLE][:, m].flatten(1))
            made = full_precision(painter(content, scale, shift))
            errors.append((made - features.levels[IMAGE][:, m]).abs().flatten(1).mean(dim=1))
            divergences.append(divergence_from_normal(scale, shift))
        weighted = {
            "reconstruction": self.reconstruction_weight * torch.stack(errors, dim=1),  # B M
            "kl": self.kl_weight * torch.stack(divergences, dim=1),
        }
        return {
            name: torch.where(features.real, each, 0).sum(dim=1).mean()
            for name, each in weighted.items()
        }


class GatedFusion(nn.Module):
    """Weigh each modality voxel by voxel, seeing all that are present, and fuse them."""

    def __init__(self, width: int, weigher: Weigher) -> None:
        super().__init__()
        self.weigher = weigher
        modalities = len(MODALITIES)
        self.gate = Unit(modalities * width, modalities)
        self.fuse = Unit(modalities * width, width, kernel=1)

    def forward(self, modalities: Tensor) -> Tensor:
        gates = self.gate(modalities.flatten(1, 2)).sigmoid()  # B M D H W
        if self.weigher.listener:
            self.weigher.listener(gates)
        fused: Tensor = self.fuse((gates.unsqueeze(2) * modalities).flatten(1, 2))
        return fused
