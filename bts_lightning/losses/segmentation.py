"""Losses; each owns the way from logits to probabilities and to the label map."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from bts_lightning.errors import ConfigError, did_you_mean
from bts_lightning.modalities import BRATS, SCHEMES, Scheme


class SegmentationLoss(nn.Module, ABC):
    """Compare logits with stored labels; coarser logits meet a label of their own resolution.

    Attributes:
        scheme: what the stored labels mean.
        activation: what `probabilities` does, in one word, for programs without torch.
        labelling: what `labels` does, likewise.

    Args:
        scheme: its name, that of the data.
    """

    activation = "its own"
    labelling = "its own"

    def __init__(self, scheme: str = "brats") -> None:
        super().__init__()
        if scheme not in SCHEMES:
            raise ConfigError(f"task.loss.scheme is {scheme!r}; {did_you_mean(scheme, SCHEMES)}")
        self.scheme_name = scheme
        self.scheme: Scheme = SCHEMES[scheme]

    @property
    @abstractmethod
    def channels(self) -> int:
        """Count the logits of a voxel that it reads."""

    @property
    def channel_classes(self) -> list[int]:
        """Give the stored label that each channel stands for."""
        return list(range(self.channels))

    def forward(self, logits: Tensor, label: Tensor, valid: Tensor | None = None) -> Tensor:
        """Give the loss of the valid samples (B bool, all by default), zero when there are none."""
        if logits.shape[1] != self.channels:
            raise ValueError(
                f"{type(self).__name__} reads {self.channels} channels, got {logits.shape[1]}; "
                f"build the network with out_channels={self.channels}"
            )
        if logits.shape[2:] != label.shape[1:]:
            label = shrunk(label, logits.shape[2:])
        if valid is None:
            valid = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        # Sums over two million voxels are beyond half precision.
        with torch.autocast(logits.device.type, enabled=False):
            chosen = torch.where(valid.view(-1, 1, 1, 1, 1), full_precision(logits), 0)
            return torch.where(valid.any(), self.compare(chosen, label, valid), 0)

    @abstractmethod
    def compare(self, logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
        """Give the loss of full-precision logits; those of invalid samples are zero."""

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Turn logits into what may be averaged over windows and mirrored views."""

    @abstractmethod
    def labels(self, probabilities: Tensor) -> Tensor:
        """Turn probabilities B×C×D×H×W into stored labels B×D×H×W (uint8)."""

    @abstractmethod
    def of_regions(self, probabilities: Tensor) -> Tensor:
        """Turn probabilities B×C×D×H×W into those of the scheme's regions, B×R×D×H×W."""

    @abstractmethod
    def divergence(self, logits: Tensor, target: Tensor) -> Tensor:
        """Give the divergence KL(target, logits) in parts, B×C×D×H×W; both are logits."""

    @abstractmethod
    def surprise(self, logits: Tensor, label: Tensor) -> Tensor:
        """Give -log p(label) in nats a voxel, the mean over the batch, whatever is supervised."""


class RegionLoss(SegmentationLoss):
    """Supervise regions (WT, TC, ET) that overlap: cross entropy and soft Dice on sigmoids.

    The defaults are A2FSeg's: no smoothing, Dice per sample and region. AMoE-BTS has `bce: 0` and
    `smooth: 1.0e-5`.

    Args:
        bce: weight of the binary cross entropy, the mean over voxels, regions and samples.
        dice: weight of 1 - Dice.
        batch_dice: one Dice for the batch in place of the mean over samples; the batch is that of
            all ranks together.
        squared: square the probabilities in the denominator of Dice (M3AE).
        smooth: added to numerator and denominator, so that an empty region found empty scores 1.
        epsilon: added to the denominator alone.
        scheme: of the data.

    Example:
        >>> loss = RegionLoss()
        >>> label = torch.randint(4, (2, 8, 8, 8)).to(torch.uint8)
        >>> loss(torch.randn(2, 3, 8, 8, 8), label).shape
        torch.Size([])
    """

    activation = "sigmoid"
    labelling = "last above half"

    def __init__(
        self,
        *,
        bce: float = 1.0,
        dice: float = 1.0,
        batch_dice: bool = False,
        squared: bool = False,
        smooth: float = 0.0,
        epsilon: float = 1e-8,
        scheme: str = "brats",
    ) -> None:
        super().__init__(scheme)
        self.bce = bce
        self.dice = dice
        self.batch_dice = batch_dice
        self.squared = squared
        self.smooth = smooth
        self.epsilon = epsilon

    @property
    def channels(self) -> int:
        """Count the regions."""
        return len(self.scheme.regions)

    @property
    def channel_classes(self) -> list[int]:
        """Give what each region is painted with."""
        return [self.scheme.paint[region] for region in self.scheme.regions]

    def compare(self, logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
        """Add cross entropy and Dice."""
        truth = regions_of(label, self.scheme).to(logits.dtype)
        total = logits.new_zeros(())
        if self.bce:
            entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
            total = total + self.bce * mean_of_valid(entropy.flatten(1).mean(dim=1), valid)
        if self.dice:
            scores = soft_dice(
                logits.sigmoid(),
                truth,
                valid,
                batch=self.batch_dice,
                squared=self.squared,
                smooth=self.smooth,
                epsilon=self.epsilon,
            )
            total = total + self.dice * (1 - scores)
        return total

    def probabilities(self, logits: Tensor) -> Tensor:
        """Give a probability for each region."""
        return full_precision(logits).sigmoid()

    def labels(self, probabilities: Tensor) -> Tensor:
        """Paint the label of each region where it is likelier than not, the innermost last."""
        b, _, *size = probabilities.shape
        painted = torch.zeros(b, *size, dtype=torch.uint8, device=probabilities.device)
        for channel, stored in enumerate(self.channel_classes):
            inside = probabilities[:, channel] > 0.5
            painted = torch.where(inside, stored, painted)
        return painted.to(torch.uint8)

    def of_regions(self, probabilities: Tensor) -> Tensor:
        """Give them as they are."""
        return probabilities

    def divergence(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compare inside and outside of each region, whose two parts are added."""
        return binary_divergence(logits, target)

    def surprise(self, logits: Tensor, label: Tensor) -> Tensor:
        """Add up the regions as if they were independent."""
        return binary_surprise(logits, regions_of(label, self.scheme))


class LabelLoss(SegmentationLoss):
    """Supervise background and labels: weighted cross entropy and soft Dice on a softmax.

    The RFNet family weighs class c of a sample by 1 - its share of the voxels, averages over all
    voxels without dividing by the weights, and takes Dice over the whole batch, background
    included; a class that does not occur has Dice 0. NiftyNet (U-HeMIS, U-HVED) has no weights,
    squares the probabilities in the denominator and adds 1e-5 above and below.

    Args:
        cross_entropy: `clamped` takes the logarithm of probabilities limited to 0.005…1, as that
            family does, so that a voxel that is very wrong has no gradient; `log_softmax` has no
            such limit. The two do not give the same numbers.
        weighted: weigh classes as above; otherwise all alike.
        ce: weight of the cross entropy.
        dice: weight of 1 - Dice.
        batch_dice: one Dice for the batch, that of all ranks together, or the mean over samples.
        background: let Dice count the background as a class too.
        squared: square the probabilities in the denominator of Dice.
        smooth: added to numerator and denominator of Dice; MONAI, nnU-Net and NiftyNet have 1.0e-5.
        epsilon: added to the denominator alone.
        scheme: of the data.
    """

    activation = "softmax"
    labelling = "argmax"

    def __init__(
        self,
        *,
        cross_entropy: Literal["log_softmax", "clamped"] = "log_softmax",
        weighted: bool = True,
        ce: float = 1.0,
        dice: float = 1.0,
        batch_dice: bool = True,
        background: bool = True,
        squared: bool = False,
        smooth: float = 0.0,
        epsilon: float = 1e-7,
        scheme: str = "brats",
    ) -> None:
        super().__init__(scheme)
        self.cross_entropy = cross_entropy
        self.weighted = weighted
        self.ce = ce
        self.dice = dice
        self.batch_dice = batch_dice
        self.first = 0 if background else 1
        self.squared = squared
        self.smooth = smooth
        self.epsilon = epsilon

    @property
    def channels(self) -> int:
        """Count the classes."""
        return self.scheme.classes

    def compare(self, logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
        """Add cross entropy and Dice."""
        truth = is_each(label, self.channels).to(logits.dtype)
        total = logits.new_zeros(())
        if self.ce:
            if self.cross_entropy == "clamped":
                log = logits.softmax(dim=1).clamp(0.005, 1).log()
            else:
                log = logits.log_softmax(dim=1)
            share = truth.mean(dim=(2, 3, 4), keepdim=True)  # B C 1 1 1
            weight = 1 - share if self.weighted else torch.ones_like(share)
            entropy = -(weight * truth * log).sum(dim=1).flatten(1).mean(dim=1)  # B
            total = total + self.ce * mean_of_valid(entropy, valid)
        if self.dice:
            scores = soft_dice(
                logits.softmax(dim=1)[:, self.first :],
                truth[:, self.first :],
                valid,
                batch=self.batch_dice,
                squared=self.squared,
                smooth=self.smooth,
                epsilon=self.epsilon,
            )
            total = total + self.dice * (1 - scores)
        return total

    def probabilities(self, logits: Tensor) -> Tensor:
        """Give a probability for each label."""
        return full_precision(logits).softmax(dim=1)

    def labels(self, probabilities: Tensor) -> Tensor:
        """Choose the likeliest label."""
        # A running maximum takes a fifth of the time of `argmax` over strided channels on a CPU.
        best = probabilities[:, 0]
        labels = torch.zeros_like(best, dtype=torch.uint8)
        for label in range(1, self.channels):
            labels = torch.where(probabilities[:, label] > best, label, labels)
            best = torch.maximum(best, probabilities[:, label])
        return labels

    def of_regions(self, probabilities: Tensor) -> Tensor:
        """Add up the labels of each region."""
        regions = self.scheme.regions.values()
        return torch.stack([probabilities[:, list(c)].sum(dim=1) for c in regions], dim=1)

    def divergence(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compare label by label; single parts may be negative, their sum is not."""
        log = target.log_softmax(dim=1)
        return log.exp() * (log - logits.log_softmax(dim=1))

    def surprise(self, logits: Tensor, label: Tensor) -> Tensor:
        """Read it off the softmax."""
        return F.cross_entropy(full_precision(logits), label.long())


class SeparateLabelLoss(SegmentationLoss):
    """Supervise each label by a sigmoid of its own: the sum of 1 - Dice over those of a tumour.

    ACN's; the sizes in the denominator are squares, and the map of the background has no target.

    Args:
        epsilon: added to the denominator.
        scheme: of the data.
    """

    activation = "sigmoid"
    labelling = "argmax above half"

    def __init__(self, *, epsilon: float = 1e-7, scheme: str = "brats") -> None:
        super().__init__(scheme)
        self.epsilon = epsilon

    @property
    def channels(self) -> int:
        """Count the classes."""
        return self.scheme.classes

    def compare(self, logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
        """Average the sum over the labels."""
        truth = is_each(label, self.channels)[:, 1:].to(logits.dtype)
        found = logits[:, 1:].sigmoid()
        shared = (found * truth).flatten(2).sum(dim=2)
        sizes = (found.square() + truth).flatten(2).sum(dim=2)
        return mean_of_valid((1 - 2 * shared / (sizes + self.epsilon)).sum(dim=1), valid)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Give a probability for each label by itself; they need not add up to 1."""
        return full_precision(logits).sigmoid()

    def labels(self, probabilities: Tensor) -> Tensor:
        """Choose the likeliest label of a tumour where it is likelier than not."""
        best, label = probabilities[:, 1:].max(dim=1)
        return torch.where(best > 0.5, label + 1, 0).to(torch.uint8)

    def of_regions(self, probabilities: Tensor) -> Tensor:
        """Take the likeliest label of each region, as `labels` does: they do not add up."""
        regions = self.scheme.regions.values()
        return torch.stack([probabilities[:, list(c)].amax(dim=1) for c in regions], dim=1)

    def divergence(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compare inside and outside of each label, whose two parts are added."""
        return binary_divergence(logits, target)

    def surprise(self, logits: Tensor, label: Tensor) -> Tensor:
        """Add up the labels of a tumour as if they were independent."""
        truth = is_each(label, self.channels)[:, 1:]
        return binary_surprise(logits[:, 1:], truth)


def binary_surprise(logits: Tensor, truth: Tensor) -> Tensor:
    """Give -log p of yes and no, added up over channels, averaged over voxels and batch."""
    logits = full_precision(logits)
    parts = F.binary_cross_entropy_with_logits(logits, truth.to(logits.dtype), reduction="none")
    return parts.sum(dim=1).mean()


def binary_divergence(logits: Tensor, target: Tensor) -> Tensor:
    """Give KL(target, logits) of yes and no, for each channel by itself."""
    inside = target.sigmoid() * (F.logsigmoid(target) - F.logsigmoid(logits))
    outside = (-target).sigmoid() * (F.logsigmoid(-target) - F.logsigmoid(-logits))
    return inside + outside


def shrunk(label: Tensor, size: Sequence[int]) -> Tensor:
    """Show a label map B×D×H×W in larger voxels: of s along an axis, the one at s/2.

    That is the phase of nnU-Net's targets (scikit-image, order 0). `nearest` takes the first of the
    s, a shift by half a voxel of the coarse grid.
    """
    return F.interpolate(label.unsqueeze(1), tuple(size), mode="nearest-exact").squeeze(1)


def regions_of(label: Tensor, scheme: Scheme = BRATS) -> Tensor:
    """Give the regions of a label map, B×R×D×H×W bool."""
    return torch.stack([is_one_of(label, c) for c in scheme.regions.values()], dim=1)


def is_each(label: Tensor, classes: int) -> Tensor:
    """Say of each class where it is, B×C×D×H×W; `one_hot` would be eight bytes a flag, and ask."""
    each = torch.arange(classes, device=label.device, dtype=label.dtype)
    return label.unsqueeze(1) == each.view(1, -1, 1, 1, 1)


def is_one_of(label: Tensor, values: tuple[int, ...]) -> Tensor:
    """Mark the voxels that hold one of the values."""
    found = label == values[0]
    for value in values[1:]:
        found = found | (label == value)
    return found


def soft_dice(
    probabilities: Tensor,
    truth: Tensor,
    valid: Tensor,
    *,
    batch: bool,
    squared: bool = False,
    smooth: float = 0.0,
    epsilon: float = 0.0,
) -> Tensor:
    """Average Dice over channels, and over the valid samples or over the union of all ranks'."""
    shared = (probabilities * truth).flatten(2).sum(dim=2)  # B C
    predicted = probabilities.square() if squared else probabilities
    sizes = (predicted + truth).flatten(2).sum(dim=2)
    if batch:
        both = torch.where(valid.view(-1, 1, 1), torch.stack([shared, sizes], dim=2), 0)
        shared, sizes = over_ranks(both.sum(dim=0, keepdim=True)).unbind(dim=2)
    scores = ((2 * shared + smooth) / (sizes + smooth + epsilon)).mean(dim=1)
    return scores.squeeze(0) if batch else mean_of_valid(scores, valid)


def full_precision(x: Tensor) -> Tensor:
    """Give half precision as single, and double as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def over_ranks(sums: Tensor) -> Tensor:
    """Add up over all ranks; the gradient finds its way back to each."""
    if not distributed.is_available() or not distributed.is_initialized():
        return sums
    total: Tensor = _SumOfRanks.apply(sums)  # type: ignore[no-untyped-call]
    return total


class _SumOfRanks(torch.autograd.Function):
    """An addend counts alike in the sum of every rank, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor) -> Tensor:
        total = sums.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return over_ranks(gradient)


def mean_of_valid(values: Tensor, valid: Tensor) -> Tensor:
    """Average one value per sample over the valid samples."""
    return torch.where(valid, values, 0).sum() / valid.sum().clamp_min(1)
