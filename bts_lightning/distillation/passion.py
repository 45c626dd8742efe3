"""PASSION: the fusion of a network teaches it to segment from each modality alone, in balance."""

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from bts_lightning.distillation.answer import Answer
from bts_lightning.distillation.terms import similarities
from bts_lightning.losses import LabelLoss, SegmentationLoss, over_ranks
from bts_lightning.modalities import MODALITIES
from bts_lightning.networks.backbone import Auxiliary, Backbone, Features, Output
from bts_lightning.task import SegmentationTask

# Probabilities are limited from below, as in the cross entropy of the RFNet family.
LEAST = 0.005
# No weight of a modality leaves these bounds before all are scaled to a norm of 2.
LOWEST, HIGHEST = 0.1, 4.0


class PassionTask(SegmentationTask):
    """Train any network in balance where modalities are missing at different rates.

    Shi et al.: PASSION, ACM MM 2024. Official code: github.com/Jun-Jie-Shi/PASSION at fd308b5
    (Apache-2.0; nothing was copied). Each step decodes the same features once from all that a
    sample keeps, the teacher, and once from each modality that it has, the students. Students learn
    the softened predictions and the prototype maps of the teacher. The modalities whose maps are
    further away than the mean lag behind: only their own heads and prototypes learn in that step. A
    weight for each modality follows, epoch by epoch, how far behind it is.

    Deviations: terms are means over the samples, officially sums, where the batch is one sample.
    Prototypes are those of the labels in a sample's own patch; `classes="batch"` is official.
    Students do not compute heads of single modalities, which the teacher's pass has already.

    Args:
        net: any network that obeys the contract; its heads of single modalities are the separate
            decoder, its other auxiliary predictions, finest first, the deep supervision.
        temperature: softens predictions before they are compared.
        distillation_weight: of the softened predictions.
        prototype_weight: of the prototype maps.
        balance_rate: how fast the weights of modalities move; grows by half every 100 epochs, the
            first included.
        classes: see above.

    The others are those of `SegmentationTask`.
    """

    balance: Tensor
    rate: Tensor
    apart: Tensor
    share: Tensor

    def __init__(
        self,
        net: Backbone,
        *,
        temperature: float = 4.0,
        distillation_weight: float = 0.5,
        prototype_weight: float = 0.1,
        balance_rate: float = 0.01,
        classes: Literal["sample", "batch"] = "sample",
        **options: Any,
    ) -> None:
        super().__init__(net, **options)
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}; give a positive number")
        self.temperature = temperature
        self.distillation_weight = distillation_weight
        self.prototype_weight = prototype_weight
        self.whole_batch = classes == "batch"
        # In the checkpoint, so that a training that goes on has the same balance.
        self.register_buffer("balance", torch.ones(len(MODALITIES)))
        self.register_buffer("rate", torch.tensor(balance_rate))
        self.register_buffer("apart", torch.zeros(len(MODALITIES)))
        self.register_buffer("share", torch.ones(len(MODALITIES)), persistent=False)

    def on_fit_start(self) -> None:
        """Count how often each modality is there: what is rare weighs more."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        has = torch.tensor([data.shows(name) for name in data.split.train]).float()
        # One that no case has is never asked for; no share of zero may divide.
        self.share.copy_(has.mean(dim=0).clamp_min(1 / len(has)))

    def on_train_epoch_end(self) -> None:
        """Give more weight to modalities that were further from the teacher than the mean."""
        if self.current_epoch % 100 == 0:
            self.rate.mul_(1.5)
        self.balance.copy_(rebalanced(self.balance, self.apart / self.share, self.rate))
        self.apart.zero_()
        weights = zip(MODALITIES, self.balance.tolist(), strict=True)
        self.log_dict({f"train/balance/{name}": weight for name, weight in weights})

    def _step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        image, present, label = batch["image"], batch["present"], batch["label"]
        if self.channels_last:
            image = image.contiguous(memory_format=torch.channels_last_3d)
        teacher: Output = self.net(image, present, batch["available"], self.place(batch))
        taught, shown = self._maps(teacher, label)
        self.watch(teacher, label)
        assert teacher.features is not None
        real = teacher.features.real  # B M
        weights = {name: torch.zeros(len(label), device=image.device) for name in ("kl", "proto")}
        found: dict[str, dict[str, Tensor]] = {}
        dist = torch.zeros_like(real, dtype=torch.float32)
        for m, name in enumerate(MODALITIES):
            found[name] = dict(weights)
            if not bool(real[:, m].any()):
                continue
            student = self._student(teacher.features, present, m)
            proto, dist[:, m] = distances(self._maps(student, label)[0], taught, shown)
            found[name] = {"kl": self._divergence(student, teacher), "proto": proto}
        lagging = self._lagging(dist, real)
        return self._weighted(teacher, label, found, lagging, real)

    def _student(self, features: Features, present: Tensor, m: int) -> Output:
        """Decode from one modality; samples that lack it repeat the teacher and do not count."""
        alone = torch.zeros_like(present)
        alone[:, m] = True
        rows = torch.where(features.real[:, m : m + 1], alone, present)
        shown = replace(features, present=(rows,) * len(features.present), heads=False)
        student: Output = self.net.decode(shown)
        return student

    def _maps(self, output: Output, label: Tensor) -> tuple[Tensor, Tensor]:
        """Give prototype maps of what the head read, and which labels have one."""
        read = Answer(self.net, output).embedding
        with torch.autocast(read.device.type, enabled=False):
            maps, shown = similarities(read.float(), label, self.loss.scheme.classes)
        return maps, shown.all(dim=0, keepdim=True) if self.whole_batch else shown

    def _divergence(self, student: Output, teacher: Output) -> Tensor:
        """Compare final predictions, and the coarser ones with half the weight each."""
        size = teacher.logits.shape[2:]
        total = self._softly(student.logits, teacher.logits, None)
        pairs = zip(coarse_heads(student), coarse_heads(teacher), strict=True)
        for level, (own, shown) in enumerate(pairs, start=1):
            parts = [head.logits if head.coarse is None else head.coarse for head in (own, shown)]
            total = total + 2.0**-level * self._softly(parts[0], parts[1], tuple(size))
        return total

    def _softly(self, logits: Tensor, target: Tensor, size: tuple[int, ...] | None) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            return softened_divergence(
                self.loss, logits, target.detach(), temperature=self.temperature, size=size
            )

    def _lagging(self, dist: Tensor, real: Tensor) -> Tensor:
        """Say which modalities are further from the teacher than the mean of their sample, M."""
        count = real.sum(dim=1, keepdim=True)
        mean = dist.sum(dim=1, keepdim=True) / count
        # A single modality is its own mean: what lies apart there is rounding, or nothing at all.
        lag = torch.where(real & (count > 1), dist / mean.clamp_min(1e-12) - 1, 0.0)
        behind = lag.sum(dim=0)
        # Over all ranks, or they would learn different things, and a checkpoint hold one's alone.
        sums = over_ranks(torch.stack([behind, dist.sum(dim=0)]).detach())
        self.apart.add_(sums[1])
        return sums[0] > 0

    def _weighted(
        self,
        teacher: Output,
        label: Tensor,
        found: dict[str, dict[str, Tensor]],
        lagging: Tensor,
        real: Tensor,
    ) -> dict[str, Tensor]:
        """Weigh every term; a factor of zero leaves each parameter its gradient."""
        on = self.main_factor
        terms = {"main": on * teacher.weight * self.loss(teacher.logits, label)}
        for level, head in enumerate(coarse_heads(teacher), start=1):
            value = on * 2.0**-level * self._supervised(head, label)
            terms[head.name] = terms[head.name] + value if head.name in terms else value
        # Until the fusion learns, each modality learns by itself, whatever lags.
        behind = lagging.float() if on else torch.ones_like(self.balance)
        for head in own_heads(teacher):
            m = MODALITIES.index(head.name.partition("/")[2])
            weight = behind[m] * self.balance[m] / self.share[m]
            value = weight * head.weight * self._supervised(head, label)
            terms[head.name] = terms[head.name] + value if head.name in terms else value
        for m, (name, parts) in enumerate(found.items()):
            counts = real[:, m].float()
            kl, proto = ((counts * parts[part]).mean() / self.share[m] for part in ("kl", "proto"))
            terms[f"distillation/{name}"] = on * self.distillation_weight * self.balance[m] * kl
            terms[f"prototypes/{name}"] = on * self.prototype_weight * behind[m] * proto
        return terms | teacher.penalties

    def _supervised(self, head: Auxiliary, label: Tensor) -> Tensor:
        value: Tensor = self.loss(head.logits, label, head.valid)
        return value if head.valid is None else value * head.valid.to(value.dtype).mean()


def own_heads(output: Output) -> list[Auxiliary]:
    """Give the predictions from single modalities."""
    return [head for head in output.auxiliary if head.name.startswith("modality/")]


def coarse_heads(output: Output) -> list[Auxiliary]:
    """Give the auxiliary predictions at coarser levels, finest first."""
    others = "modality/", "subset/"
    return [head for head in output.auxiliary if not head.name.startswith(others)]


def softened_divergence(
    loss: SegmentationLoss,
    logits: Tensor,
    target: Tensor,
    *,
    temperature: float,
    size: tuple[int, ...] | None = None,
) -> Tensor:
    """Give T² · KL(target, logits) of each sample, the mean over classes and voxels.

    Coarse maps are enlarged to `size` before they are compared. Each region is two classes.
    """
    own, taught = (loss.probabilities(x.float() / temperature) for x in (logits, target))
    if size is not None and own.shape[2:] != size:
        own, taught = (
            F.interpolate(p, size, mode="trilinear", align_corners=True) for p in (own, taught)
        )
    parts = _part(own, taught)
    if not isinstance(loss, LabelLoss):
        parts = (parts + _part(1 - own, 1 - taught)) / 2
    return temperature**2 * parts.flatten(1).mean(dim=1)


def _part(own: Tensor, taught: Tensor) -> Tensor:
    p, q = own.clamp_min(LEAST), taught.clamp_min(LEAST)
    return q * (q.log() - p.log())


def distances(maps: Tensor, taught: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
    """Give how far prototype maps B×K×V lie apart in each sample: squared, and absolute."""
    apart = maps - taught.detach()
    count = shown.sum(dim=1).clamp_min(1)

    def mean(x: Tensor) -> Tensor:
        return torch.where(shown, x.mean(dim=2), 0.0).sum(dim=1) / count

    return mean(apart.square()), mean(apart.detach().abs())


def rebalanced(balance: Tensor, apart: Tensor, rate: Tensor) -> Tensor:
    """Move the weights of the modalities against their lead over the mean; their norm is 2."""
    mean = apart.mean()
    lead = (mean - apart) / mean.clamp_min(1e-12)
    moved = (balance - rate * lead).clamp(LOWEST, HIGHEST)
    return 2 * moved / moved.norm()
