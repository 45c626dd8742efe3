"""What a student learns from a teacher: logits, similarities to class means, an anchor."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from bts_lightning.distillation.answer import Answer
from bts_lightning.errors import ConfigError
from bts_lightning.losses import SegmentationLoss
from bts_lightning.modalities import BRATS
from bts_lightning.networks.backbone import over


class Term(ABC):
    """Base of the terms; `task.terms.NAME=null` switches one off.

    Attributes:
        weight: factor of the term.
    """

    def __init__(self, weight: float) -> None:
        if weight < 0:
            raise ValueError(f"weight is {weight}; give 0 or more")
        self.weight = weight

    @abstractmethod
    def __call__(
        self, student: Answer, teacher: Answer, label: Tensor, loss: SegmentationLoss
    ) -> Tensor:
        """Give the unweighted distance of each sample, B; zero where student equals teacher."""

    def check(self, student: Answer, teacher: Answer) -> None:  # noqa: B027 (most refuse nothing)
        """Refuse networks that this term cannot compare."""


class LogitTerm(Term):
    """Pull softened predictions to the teacher's: the mean of KL over voxels and classes.

    Hinton et al., arXiv 1503.02531. ProtoKD has weight and temperature 10 and no factor T².

    Args:
        weight: factor of the term.
        temperature: divides the logits of both.
        scale_by_t2: multiply by T², so that gradients keep their size when T changes (Hinton).
        where: all voxels, or those in a cube around the tumour.
        margin: voxels from the tumour to the border of its neighbourhood.
    """

    def __init__(
        self,
        *,
        weight: float = 10.0,
        temperature: float = 10.0,
        scale_by_t2: bool = False,
        where: Literal["everywhere", "tumour"] = "everywhere",
        margin: int = 8,
    ) -> None:
        super().__init__(weight)
        if temperature <= 0 or margin < 0:
            raise ValueError(
                f"temperature is {temperature} and margin {margin}; give a positive temperature "
                "and a margin of 0 or more"
            )
        self.temperature = temperature
        self.scale = temperature**2 if scale_by_t2 else 1.0
        self.where = where
        self.margin = margin

    def __call__(
        self, student: Answer, teacher: Answer, label: Tensor, loss: SegmentationLoss
    ) -> Tensor:
        """Compare voxel by voxel; a patch without tumour has no neighbourhood of it."""
        t = self.temperature
        parts = loss.divergence(student.logits.float() / t, teacher.logits.float() / t).mean(dim=1)
        if self.where == "everywhere":
            return self.scale * parts.flatten(1).mean(dim=1)
        near = neighbourhood(label, self.margin)
        inside = torch.where(near, parts, 0.0).flatten(1).sum(dim=1)
        return self.scale * inside / near.flatten(1).sum(dim=1).clamp_min(1)


class PrototypeTerm(Term):
    """Pull the similarities of each voxel's features to the means of the classes (ProtoKD).

    Wang et al.: Prototype Knowledge Distillation for Medical Segmentation with Missing Modality,
    ICASSP 2023; code at github.com/SakurajimaMaiii/ProtoKD (2c78a39). For each label k in a patch:
    the mean feature of its voxels, and a map of the cosine between that mean and every voxel's
    feature. The term is the mean squared difference of the maps of student and teacher, whose
    features may differ in number. Features are what the head reads.

    Deviation: a label that is missing in one patch of a batch is left out of that patch only.
    """

    def __init__(self, *, weight: float = 0.1) -> None:
        super().__init__(weight)

    def __call__(
        self, student: Answer, teacher: Answer, label: Tensor, loss: SegmentationLoss
    ) -> Tensor:
        """Compare maps of the labels that the patch shows."""
        taught, shown = similarities(teacher.embedding.float(), label, loss.scheme.classes)
        learnt, _ = similarities(student.embedding.float(), label, loss.scheme.classes)
        distance = (learnt - taught).square().mean(dim=2)  # B K
        return torch.where(shown, distance, 0.0).sum(dim=1) / shown.sum(dim=1)

    def check(self, student: Answer, teacher: Answer) -> None:
        """Refuse heads that read features of different resolution."""
        sizes = [tuple(answer.embedding.shape[2:]) for answer in (student, teacher)]
        if sizes[0] != sizes[1]:
            raise ConfigError(
                f"the heads of student and teacher read features of {sizes[0]} and {sizes[1]} "
                "voxels, which prototypes cannot compare; set task.terms.prototypes=null"
            )


class AnchorTerm(Term):
    """Pull the student's features of single modalities to the anchor of an aligned teacher.

    ½ mean (f - p)² over the student's present modalities, then over the levels that the teacher
    aligns. It needs a student whose features of these levels have the teacher's shape.
    """

    def __init__(self, *, weight: float = 1.0) -> None:
        super().__init__(weight)

    def __call__(
        self, student: Answer, teacher: Answer, label: Tensor, loss: SegmentationLoss
    ) -> Tensor:
        """Average over modalities, then over levels."""
        anchors = teacher.net.anchors(teacher.features)
        own = student.net.comparable(student.features)
        total = torch.zeros(len(label), device=label.device)
        for level, anchor in anchors.items():
            present = student.features.present[level]
            p = anchor.float().unsqueeze(1)
            apart = torch.where(over(present, p), own[level].float(), p) - p
            distance = apart.square().flatten(2).mean(dim=2)  # B M
            total = total + 0.5 * distance.sum(dim=1) / present.sum(dim=1)
        return total / len(anchors)

    def check(self, student: Answer, teacher: Answer) -> None:
        """Refuse a teacher without anchor and a student that has nothing to pull."""
        names = type(student.net).__name__, type(teacher.net).__name__
        off = "or set task.terms.anchor=null"
        anchors = teacher.net.anchors(teacher.features)
        if not anchors:
            raise ConfigError(
                f"the teacher {names[1]} has no anchor; train it with the mix-in medmap or "
                f"adaptor, {off}"
            )
        own = student.net.comparable(student.features)
        for level, anchor in anchors.items():
            if level not in own:
                raise ConfigError(
                    f"the student {names[0]} has no features of single modalities at level {level} "
                    f"of the teacher's anchor; add the mix-in adaptor to the student, {off}"
                )
            shapes = tuple(own[level].shape[2:]), tuple(anchor.shape[1:])
            if shapes[0] != shapes[1]:
                raise ConfigError(
                    f"the student's features at level {level} have shape {shapes[0]}, the "
                    f"teacher's anchor {shapes[1]}; train both with the same widths, {off}"
                )


def neighbourhood(label: Tensor, margin: int) -> Tensor:
    """Mark the voxels that a cube of this margin around a tumour voxel reaches, B×D×H×W."""
    near = (label > 0).float().unsqueeze(1)
    for axis in range(3):
        kernel = [2 * margin + 1 if a == axis else 1 for a in range(3)]
        padding = [margin if a == axis else 0 for a in range(3)]
        near = F.max_pool3d(near, kernel, stride=1, padding=padding)
    return near.squeeze(1) > 0


def similarities(
    embedding: Tensor, label: Tensor, classes: int = BRATS.classes
) -> tuple[Tensor, Tensor]:
    """Give cosines between voxels and class means, B×K×V, and which labels are there, B×K.

    Classes are those that are stored, whatever the loss reads.
    """
    if embedding.shape[2:] != label.shape[1:]:
        label = F.interpolate(label.unsqueeze(1), embedding.shape[2:], mode="nearest").squeeze(1)
    x = embedding.flatten(2)  # B E V
    member = F.one_hot(label.long().flatten(1), classes).to(x.dtype)  # B V K
    count = member.sum(dim=1)  # B K
    means = torch.bmm(x, member) / count.clamp_min(1).unsqueeze(1)  # B E K
    cosines = torch.bmm(F.normalize(means, dim=1).mT, F.normalize(x, dim=1))  # B K V
    return cosines, count > 0
