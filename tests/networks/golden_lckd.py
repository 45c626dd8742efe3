"""How the golden files of LCKD and MetaKD map onto ours; their logits are ET, WT, TC."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD

from bts_lightning.config import build as build_node
from bts_lightning.config import load
from bts_lightning.distillation.peers import Elected, PeerTask, Teaching, Weighed
from bts_lightning.inference import Protocol
from bts_lightning.losses import RegionLoss, SegmentationLoss
from bts_lightning.modalities import MODALITIES, SHOWN_AS, Modality
from bts_lightning.networks.backbone import Backbone, Features
from bts_lightning.networks.lckd import DEEP, LCKD
from bts_lightning.networks.official.table import read_table
from bts_lightning.networks.standardised import FINE, filled
from tests.golden.fill_rule import fill, make_input, make_label
from tests.networks.conformity import (
    Array,
    Lesson,
    Recorded,
    Row,
    config_of,
    read,
    relative,
    to_ours,
    unowned,
)

# The global branch of the encoder: a convolution and a norm. MetaKD never calls its attention.
DEAD = 256 * 256 + 2 * 256
ATTENTION = 3 * 125 * 125 + 3 * 125 + 125 * 125 + 125
# Weights that are learned beside the network.
BESIDE = 4
OFFICIAL: tuple[Modality, ...] = ("flair", "t1", "t1c", "t2")
ORDER = [MODALITIES.index(name) for name in OFFICIAL]


class Patient(LCKD):
    """Encode a zero image once a file: in double precision that takes half a minute."""

    made: list[Tensor] | None = None

    def blank(self, features: Features) -> list[Tensor] | None:
        if self.made is None:
            self.made = super().blank(features)
        return self.made


def build(config: dict[str, Any]) -> Patient:
    return Patient(out_channels=config["classes"])


@torch.no_grad()
def inner(net: Backbone, features: Features, seen: Features) -> dict[str, Tensor]:
    """Give deep features, of zero images too, before and after fusion; and all finer levels."""
    assert isinstance(net, Patient)
    encoded, fused = filled(seen, DEEP, net.blank(seen)), net.deep(seen)
    found = {}
    for m, name in enumerate(MODALITIES):
        found[f"feature_{SHOWN_AS[name]}"] = encoded[0, m]
        found[f"fused_{SHOWN_AS[name]}"] = fused[0, m]
    levels = [level[0] for level in features.levels[:FINE]]
    levels.append(net.shared.stages[FINE - 1](levels[-1]))
    return found | {f"L{k}_all": level[ORDER].flatten(0, 1) for k, level in enumerate(levels)}


def supervised(lesson: Lesson) -> dict[str, Tensor]:
    """Give Dice and cross entropy by themselves."""
    loss = lesson.loss
    assert isinstance(loss, RegionLoss)
    parts = {
        "dice": RegionLoss(bce=0.0, dice=loss.dice, epsilon=loss.epsilon),
        "bce": RegionLoss(bce=loss.bce, dice=0.0),
    }
    return {name: part(lesson.output.logits, lesson.label) for name, part in parts.items()}


def taught(lesson: Lesson, teaching: Teaching) -> Tensor:
    """Give what a task adds to the loss, by the weight of the experiment."""
    task = PeerTask(LCKD(width=2), teaching=teaching, loss=lesson.loss, optimizer=SGD)
    return task.extra_terms(lesson.label, lesson.output, {})["peers"] / task.weight


def lckd_losses(lesson: Lesson) -> dict[str, Tensor]:
    found = supervised(lesson)

    def by(*teachers: Modality) -> Tensor:
        return taught(lesson, Elected(Protocol(), first=list(teachers)))

    found |= {f"kd_teacher_{SHOWN_AS[name]}": by(name) for name in OFFICIAL}
    both = by("flair", "t1c")
    total = lesson.total + load(["lckd"]).task.weight * both
    return found | {"kd_teachers_FLAIR_T1c": both, "total_teachers_FLAIR_T1c": total}


def weighed() -> Weighed:
    """Fill the weights as a bias in the official order."""
    weights = fill((4,), "bias", 0)
    teaching = Weighed().double()
    teaching.theta.copy_(torch.from_numpy(weights)[[OFFICIAL.index(m) for m in MODALITIES]])
    return teaching


def metakd_losses(lesson: Lesson) -> dict[str, Tensor]:
    return supervised(lesson) | {"kd": taught(lesson, weighed())}


@dataclass(frozen=True)
class Encoded(Recorded):
    """Learn from what was encoded already: this network trains as it predicts."""

    def _learn(self, net: Backbone, config: dict[str, Any], mask: Array) -> Lesson:
        ((_, features),) = self._cache.values()
        seen = features.restrict(torch.from_numpy(mask).unsqueeze(0))
        loss: SegmentationLoss = build_node(load([self.experiment]).task.loss)
        label = torch.from_numpy(make_label(config["input"][2]))
        label = to_ours(label, self.table_of(config))
        with torch.no_grad():
            output = replace(net.decode(seen), features=seen)
        return Lesson(output, loss, label, loss(output.logits, label))


class WithLesson(Encoded):
    """Compare the lesson of the weights too."""

    def check(self, path: Path, index: int) -> list[Row]:
        rows, golden, config = super().check(path, index), read(path), config_of(path)
        net, _ = self.network(path, torch.float64)
        table = read_table("metakd")
        image, label = make_input(config["input"][2]), make_label(config["input"][2])
        batch = {
            "image": to_ours(torch.from_numpy(image), table).double(),
            "label": to_ours(torch.from_numpy(label), table),
            "available": torch.ones(1, len(MODALITIES), dtype=torch.bool),
        }
        if index:  # it shows all modalities, whatever the mask
            return rows
        teaching, loss = weighed(), build_node(load(["metakd"]).task.loss)
        shares = teaching.told()[ORDER].numpy()
        value, gradient = teaching.gradient(net, loss, batch)
        error = abs(float(value) - float(golden["meta_loss_float64"]))
        moved = relative(gradient[ORDER].numpy(), golden["meta_grad_float64"])
        rows.append(Row("weights", relative(shares, golden["kd_softmax"]), 1e-6))
        return [*rows, Row("meta loss", error, 1e-5), Row("meta gradient", moved, 1e-6)]


GOLDEN = {
    "LCKD": Encoded(
        build,
        limit=1e-6,
        auxiliary_limit=6e-3,  # as ShaSpec's: features of zero images, which nobody reads
        in_double=True,
        salt=unowned,
        table="lckd",
        dead=lambda config: DEAD,
        auxiliary=inner,
        experiment="lckd",
        losses=lckd_losses,
        loss_limit=1e-5,
    ),
    "MetaKD (MCKD)": WithLesson(
        build,
        # The file holds single precision alone, 7e-4 from double where something is absent.
        limit=1e-3,
        in_double=True,
        stride=9,
        table="metakd",
        dead=lambda config: DEAD + ATTENTION + BESIDE,
        experiment="metakd",
        losses=metakd_losses,
        loss_limit=1e-5,
    ),
}
