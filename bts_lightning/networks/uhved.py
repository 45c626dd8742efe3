"""U-HVED (Dorent 2019): a variational U-Net that multiplies what each modality says."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bts_lightning.modalities import MODALITIES, SUBSETS
from bts_lightning.networks.backbone import Backbone, Features, Output, Weigher, over
from bts_lightning.networks.hemis import Decoder, Encoder
from bts_lightning.networks.presence import encode_each, full_precision, is_worth_sharing

# The clip of the official log-variances, and what keeps their inverse finite (U-HVED).
LOG_VARIANCE_LIMIT = 50.0


EPSILON = 1e-7


class UHVED(Backbone):
    """Fuse Gaussians of the present modalities and a standard normal prior by their product.

    Dorent et al.: Hetero-Modal Variational Encoder-Decoder for Joint Modality Completion and
    Segmentation, MICCAI 2019. Official code: github.com/ReubenDo/U-HVED (MIT, TensorFlow); met
    number by number in the PyTorch port of the IM-Fuse benchmark (fbbd48e).

    Deviations: evaluation takes the posterior mean, as the port does (the original draws a sample).
    The penalties are taken over the modalities that were encoded, so that cases with absent images
    can train; with four images they are the original's: over each scale the mean of the divergence
    of one posterior from that of each subset, plus the mean of the divergence of each subset's
    posterior from the prior; and the squared error of each reconstructed modality.
    In training the image is carried as a fifth level, for the reconstruction to be compared with.

    Args:
        width: channels of the first block; they double with each halving.
        kl_weight: of the divergences; 0 leaves them out.
        reconstruction_weight: of the squared errors; 0 leaves out the four decoders as well.
        kl_from: whose posterior the divergences of the subsets start from. The official code takes
            the `kept` modalities, so that dropped ones are pulled towards these; the paper has all
            that are `available`, which gives about three quarters of that divergence.
        fusion: `mean` in place of `sample` trains without sampling.
        out_channels: 3 for regions, 4 for labels.
    """

    divisor = 8
    least_width = 2
    fused_levels = (0, 1, 2, 3)
    learns_from_dropped = True  # posterior and reconstruction are those of all modalities

    def __init__(
        self,
        *,
        width: int = 8,
        kl_weight: float = 0.1,
        reconstruction_weight: float = 0.1,
        kl_from: Literal["kept", "available"] = "kept",
        fusion: Literal["sample", "mean"] = "sample",
        out_channels: int = 4,
    ) -> None:
        super().__init__(out_channels, width=width)
        self.kl_weight = kl_weight
        self.reconstruction_weight = reconstruction_weight
        self.kl_from = kl_from
        self.fusion = fusion
        widths = [width * 2**level for level in self.fused_levels]
        halves = [w // 2 for w in widths]
        self.encoders = nn.ModuleList(Encoder(widths, widths) for _ in MODALITIES)
        self.precisions = [Weigher("precision", level) for level in self.fused_levels]
        self.decoder = Decoder(halves, widths, out_channels)
        self.reconstructions = nn.ModuleList(
            Decoder(halves, widths, 1) for _ in MODALITIES if reconstruction_weight
        )

    @classmethod
    def small(cls) -> dict[str, Any]:
        """Give arguments of the same wiring that run in a blink."""
        return {"width": 4}

    def encode_levels(self, image: Tensor, present: Tensor) -> tuple[Tensor, ...]:
        """Give means and log-variances of each modality, side by side, per scale."""
        levels = encode_each(self.encoders, image)
        if self.training and self.reconstruction_weight:
            levels = (*levels, image.unsqueeze(2))
        return levels

    def decode(self, features: Features) -> Output:
        """Fuse each scale, sample in training, and decode."""
        fused = [self._fuse(features, level) for level in self.fused_levels]
        output: Output = self.decoder(fused)
        penalties = {}
        if self.training and self.kl_weight:
            penalties["kl"] = self.kl_weight * self._divergence(features)
        if self.training and self.reconstruction_weight:
            penalties["reconstruction"] = self.reconstruction_weight * self._error(features, fused)
        return replace(output, penalties=penalties)

    def _fuse(self, features: Features, level: int) -> Tensor:
        x, present = features.levels[level], features.present[level]
        gaussians = experts(x, present)
        mean, precision = posterior(*gaussians, present)
        if listener := self.precisions[level].listener:
            listener((gaussians[1] / precision.unsqueeze(1)).mean(dim=2))
        if self.training and self.fusion == "sample":
            mean = mean + torch.randn_like(mean) * (1 / precision + EPSILON).sqrt()
        return mean.to(x.dtype)

    def weighers(self) -> tuple[Weigher, ...]:
        """Tell the share of each modality in the precision of all; what is left is the prior's."""
        return tuple(self.precisions)

    def decode_subsets(self, features: Features, subsets: Tensor) -> Tensor:
        """Compute once the Gaussians that are multiplied for all subsets of a case."""
        if self.is_heard or not is_worth_sharing(features.levels):
            return super().decode_subsets(features, subsets)
        everything = torch.ones_like(features.real)
        factors = [experts(features.levels[level], everything) for level in self.fused_levels]
        seen = features.restrict(subsets)
        rows = []
        for row in range(len(subsets)):
            fused = []
            for level, (weighted, precision) in zip(self.fused_levels, factors, strict=True):
                some = seen.present[level][row].nonzero().flatten().tolist()
                total = torch.stack([precision[:, m] for m in some]).sum(dim=0).add_(1)
                mean = torch.stack([weighted[:, m] for m in some]).sum(dim=0).div_(total)
                fused.append(mean.to(features.levels[level].dtype))
            rows.append(self.decoder(fused).logits)
        return torch.stack(rows)  # S B C D H W

    def _divergence(self, features: Features) -> Tensor:
        own = features.original or features
        kept = own.present[0] if self.kl_from == "kept" else own.real
        levels = [subset_divergence(own.levels[x], own.real, kept) for x in self.fused_levels]
        return torch.stack(levels).mean()

    def _error(self, features: Features, fused: Sequence[Tensor]) -> Tensor:
        image, real = features.levels[4].squeeze(2), features.real
        ours = torch.cat([decoder(fused).logits for decoder in self.reconstructions], dim=1)
        error = torch.where(over(real, image), full_precision(ours) - image, 0).square()
        voxels = image[0, 0].numel()
        return error.sum() / (real.sum() * voxels)


def experts(x: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Give precision-weighted means and precisions of the kept modalities, zeros for the others.

    In full precision: 1 / (exp(-50) + 1e-7) and exp(50) are both beyond half.
    """
    flags = over(keep, x)
    mean, log_variance = torch.where(flags, full_precision(x), 0).chunk(2, dim=2)
    log_variance = log_variance.clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)
    precision = torch.where(flags, 1 / (log_variance.exp() + EPSILON), 0)
    return mean * precision, precision


def posterior(weighted: Tensor, precision: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Multiply the Gaussians of the kept modalities and the prior; give mean and precision."""
    flags = over(keep, precision)
    total = 1 + torch.where(flags, precision, 0).sum(dim=1)
    return torch.where(flags, weighted, 0).sum(dim=1) / total, total


def subset_divergence(x: Tensor, real: Tensor, kept: Tensor) -> Tensor:
    """Say how far apart the posteriors of the subsets of the real modalities are, at one scale.

    The sum over subsets of KL(posterior of the kept modalities ‖ posterior of the subset) over the
    number of proper subsets, plus the mean over all subsets of KL(posterior of the subset ‖ prior),
    averaged over voxels, channels and samples.
    """
    gaussians = experts(x, real)
    start = posterior(*gaussians, real & kept)
    spread = prior = counted = counted_proper = torch.zeros(x.shape[0], device=x.device)
    for subset in SUBSETS:
        flags = torch.tensor(subset, device=x.device)
        possible = (real | ~flags).all(dim=1)
        proper = possible & (real & ~flags).any(dim=1)
        part = posterior(*gaussians, real & flags)
        spread = spread + torch.where(possible, divergence(start, part), 0)
        prior = prior + torch.where(possible, divergence_from_prior(part), 0)
        counted_proper = counted_proper + proper
        counted = counted + possible
    return (spread / counted_proper.clamp_min(1) + prior / counted).mean()


def divergence(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    """Give KL(one ‖ other) of Gaussians (mean, precision), averaged within each sample.

    With the guards of the official code, which matter where a variance is as small as they are.
    """
    (mean, precision), (other_mean, other_precision) = one, other
    variance, other_variance = 1 / precision + EPSILON, 1 / other_precision + EPSILON
    squares = (variance + (mean - other_mean).square()) / (other_variance + EPSILON)
    return 0.5 * (squares + (other_variance / variance).log() - 1).flatten(1).mean(dim=1)


def divergence_from_prior(gaussian: tuple[Tensor, Tensor]) -> Tensor:
    """Give KL(gaussian ‖ standard normal), averaged within each sample."""
    mean, precision = gaussian
    variance = 1 / precision + EPSILON
    squares = (variance + mean.square()) / (1 + EPSILON)
    return 0.5 * (squares - variance.log() - 1).flatten(1).mean(dim=1)
