"""DC-Seg: in training, pull apart what each image shows and how it looks, by contrast."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bts_lightning.losses.contrast import anatomy_contrast, modality_contrast
from bts_lightning.networks.backbone import Backbone, Output, over
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
        painting: makes, from the network, what paints images and gives their styles, as
            `networks.painting.Painting` does.
        reconstruction_weight: of the squared error of the painted images.
        anatomy_weight: of the contrast of deepest features.
        modality_weight: of the contrast of styles.
        kl_weight: of the divergence of each style's spread from a standard normal one.

    The others are those of `SegmentationTask`.
    """

    def __init__(
        self,
        net: Backbone,
        *,
        painting: Callable[[Backbone], nn.Module],
        reconstruction_weight: float = 0.4,
        anatomy_weight: float = 0.4,
        modality_weight: float = 0.4,
        kl_weight: float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(net, **options)
        self.weights = {
            "reconstruction": reconstruction_weight,
            "anatomy": anatomy_weight,
            "modality": modality_weight,
            "kl": kl_weight,
        }
        self.painting = painting(net)

    def extra_terms(
        self, image: Tensor, output: Output, batch: dict[str, Any]
    ) -> dict[str, Tensor]:
        """Paint all images again, and contrast anatomies and styles."""
        features, content = output.features, output.fused
        assert features is not None
        assert content is not None
        own = features.original or features
        real = own.real
        painted = self.painting(torch.where(over(real, image), image, 0), content)
        deepest = own.levels[self.net.fused_levels[-1]].float()
        with torch.autocast(image.device.type, enabled=False):
            found = {
                "reconstruction": mean_of(painted.error, real).mean(),
                "anatomy": anatomy_contrast(deepest, real),
                "modality": modality_contrast(painted.styles, real),
                "kl": mean_of(painted.divergence, real).sum(),
            }
        return {name: self.weights[name] * value for name, value in found.items()}


def mean_of(each: Tensor, real: Tensor) -> Tensor:
    """Give for each modality the mean over the batch, B×M to M; what is not there counts zero."""
    return torch.where(real, each, 0).mean(dim=0)
