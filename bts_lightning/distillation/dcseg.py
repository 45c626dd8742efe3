"""DC-Seg: in training, pull apart what each image shows and how it looks, by contrast."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bts_lightning.errors import ConfigError
from bts_lightning.losses import SegmentationLoss
from bts_lightning.losses.contrast import anatomy_contrast, modality_contrast
from bts_lightning.modalities import MODALITIES
from bts_lightning.networks.backbone import Backbone, Output, over, weightless
from bts_lightning.networks.modules import Modules
from bts_lightning.networks.painting import Painter, StyleEncoder, divergence_from_normal
from bts_lightning.task import SegmentationTask


class DCSegTask(SegmentationTask):
    """Train a network of separate encoders with DC-Seg's terms; the network itself stays as it is.

    DC-Seg: Disentangled Contrastive Learning for Brain Tumor Segmentation with Missing Modalities,
    MICCAI 2025, arXiv 2505.11921. The authors' repository could not be had. The terms are those of
    a third party's copy, github.com/AImageLab-zip/IM-Fuse at 3669ff0, legacy/DC-Seg (no licence;
    nothing was copied), whose file of layers is not there.

    The deepest features of one patient's modalities shall be alike (anatomy), and the styles of one
    modality over patients (modality). From the fused features of what is present and its own style
    each modality's image is painted again, dropped ones too. Nothing of this is in the prediction.

    Deviations: images that a case does not have take no part; there every case has four. A batch
    of one has no other patient: then anatomy has no negatives, and modality only itself. On
    several ranks each contrasts its own samples. How borders, biases and norms of the style
    encoders and painters are is not in the copy: here as RobustSeg has them, but for norms without
    weights and maps enlarged without fixed corners.

    Args:
        net: keeps the encoders of the modalities apart, and gives `Output.fused`: RFNet, mmFormer,
            IM-Fuse, M2FTrans.
        reconstruction_weight: of the squared error of the painted images.
        anatomy_weight: of the contrast of deepest features.
        modality_weight: of the contrast of styles.
        kl_weight: of the divergence of each style's spread from a standard normal one.
        styles: numbers of a style.

    The others are those of `SegmentationTask`.
    """

    def __init__(
        self,
        net: Backbone,
        *,
        loss: SegmentationLoss,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        schedule: Callable[[Optimizer], LRScheduler] | None = None,
        reconstruction_weight: float = 0.4,
        anatomy_weight: float = 0.4,
        modality_weight: float = 0.4,
        kl_weight: float = 0.1,
        styles: int = 128,
        main_loss_from_epoch: int = 0,
        channels_last: bool = False,
        compile_net: bool = False,
    ) -> None:
        super().__init__(
            net,
            loss=loss,
            optimizer=optimizer,
            schedule=schedule,
            main_loss_from_epoch=main_loss_from_epoch,
            channels_last=channels_last,
            compile_net=compile_net,
        )
        self.weights = {
            "reconstruction": reconstruction_weight,
            "anatomy": anatomy_weight,
            "modality": modality_weight,
            "kl": kl_weight,
        }
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

    def extra_terms(
        self, image: Tensor, output: Output, batch: dict[str, Any]
    ) -> dict[str, Tensor]:
        """Paint all images again, and contrast anatomies and styles."""
        features, content = output.features, output.fused
        assert features is not None
        assert content is not None
        own = features.original or features
        real = own.real
        image = torch.where(over(real, image), image, 0)
        errors, divergences, styles = [], [], []
        for m, (encode, painter) in enumerate(zip(self.styles, self.painters, strict=True)):
            target = image[:, m : m + 1]
            style = encode(target).flatten(1)
            scale, shift = painter.affine(style)
            made = painter(content, scale, shift).float()
            errors.append((made - target.float()).square().flatten(1).mean(dim=1))
            divergences.append(divergence_from_normal(shift, scale) / shift.shape[1])
            styles.append(style.float())
        deepest = own.levels[self.net.fused_levels[-1]].float()
        with torch.autocast(image.device.type, enabled=False):
            found = {
                "reconstruction": mean_of(errors, real).mean(),
                "anatomy": anatomy_contrast(deepest, real),
                "modality": modality_contrast(torch.stack(styles, dim=1), real),
                "kl": mean_of(divergences, real).sum(),
            }
        return {name: self.weights[name] * value for name, value in found.items()}


def mean_of(each: list[Tensor], real: Tensor) -> Tensor:
    """Give for each modality the mean over the batch, B each; what is not there counts as zero."""
    return torch.where(real, torch.stack(each, dim=1), 0).mean(dim=0)


def widths_of(net: Backbone) -> list[int]:
    """Give the widths of a painter, finest first, from what the network would give it."""
    needs = "use rfnet, or another one that gives `Output.fused` and learns from dropped images"
    if not net.learns_from_dropped or not net.fused_levels:
        raise ConfigError(f"DC-Seg cannot train {type(net).__name__}; {needs}")
    copy, image, present = weightless(net)
    fused = copy.train()(image, present, present).fused
    if fused is None:
        raise ConfigError(f"DC-Seg cannot train {type(net).__name__}; {needs}")
    halvings = (image.shape[-1] // fused.shape[-1]).bit_length() - 1
    return [fused.shape[1] // 2**level for level in reversed(range(halvings + 1))]
