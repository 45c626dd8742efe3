"""M3AE's second stage: each case is seen twice, through two subsets, and must look the same."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bts_lightning.availability import Availability, SizeUniform
from bts_lightning.distillation.masked import with_substitute
from bts_lightning.distillation.stages import StagedTask
from bts_lightning.errors import ConfigError
from bts_lightning.losses import SegmentationLoss
from bts_lightning.networks.backbone import Backbone, Output


class SelfDistillationTask(StagedTask):
    """Begin from a pre-training, and segment each case through two subsets at a time.

    Liu et al.: M3AE, AAAI 2023; official code at fdb2800 (AGPL-3.0; nothing was copied). There is
    no teacher: the gradient of what sets the two apart runs into both. The substitute image is a
    constant. Where both draw one subset the term is zero.

    Deviations: `compare="bottleneck"` is the paper's; as released, an index that is one too high
    compares the `quarter_logits`. The intensity is changed after the substitution, so that it
    changes the substitute as well, as there; the mirror images are drawn while a patch is read.

    Args:
        net: with a `substitute`, as `networks.m3ae.M3AE` has.
        pretraining: the run of the first stage; null begins from nothing, with noise as substitute.
            `bts train` also takes the mix-in that makes the first stage of this experiment, and
            finds its run or trains it.
        compare: what of the two copies is pulled together.
        consistency: the weight of their mean squared difference.
        intensity: how much a slice of a modality is scaled and shifted at most.
        availability: what the second copy keeps; `data.availability` says it of the first.

    The others are those of `SegmentationTask`.
    """

    def __init__(
        self,
        net: Backbone,
        *,
        loss: SegmentationLoss,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        schedule: Callable[[Optimizer], LRScheduler] | None = None,
        pretraining: str | None = None,
        compare: Literal["bottleneck", "quarter_logits"] = "bottleneck",
        consistency: float = 0.1,
        intensity: float = 0.1,
        availability: Availability | None = None,
        main_loss_from_epoch: int = 0,
        channels_last: bool = False,
    ) -> None:
        has_heads = len(with_substitute(net).deep) > 0
        if compare == "quarter_logits" and not has_heads:
            raise ConfigError(
                "task.compare=quarter_logits compares a head of deep supervision; set "
                "net.deep_supervision=true"
            )
        super().__init__(
            net,
            loss=loss,
            optimizer=optimizer,
            schedule=schedule,
            pretraining=pretraining,
            anew=("head", "deep"),
            main_loss_from_epoch=main_loss_from_epoch,
            channels_last=channels_last,
        )
        self.compares_logits = compare == "quarter_logits"
        self.consistency = consistency
        self.intensity = intensity
        self.availability = availability or SizeUniform()

    def _step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        image, label, available = batch["image"], batch["label"], batch["available"]
        if self.channels_last:
            image = image.contiguous(memory_format=torch.channels_last_3d)
        net = with_substitute(self.net)
        both = torch.cat([batch["present"], self.again(available, batch["seed"])])
        features = net.encode(image, available, self.place(batch)).repeat(2).restrict(both)
        output, deepest = net.read(self.shaken(net.seen(features)))
        label = label.repeat(2, 1, 1, 1)
        self.watch(output, label)
        return self.terms(output, deepest, label)

    def terms(self, output: Output, deepest: Tensor, label: Tensor) -> dict[str, Tensor]:
        """Give all weighted terms of the two copies, one behind the other in the batch."""
        terms = {"main": self.main_factor * self.loss(output.logits, label)}
        for extra in output.auxiliary:
            terms[extra.name] = extra.weight * self.loss(extra.logits, label)
        compared = output.auxiliary[-1].logits if self.compares_logits else deepest
        one, other = compared.float().chunk(2)
        terms["consistency"] = self.consistency * (one - other).square().mean()
        return terms

    def again(self, available: Tensor, seeds: list[int]) -> Tensor:
        """Draw what the second copy of each case keeps."""
        drawn = [
            self.availability.draw(here, seed, self.current_epoch, 0)
            for here, seed in zip(available.tolist(), seeds, strict=True)
        ]
        return torch.tensor(drawn, device=available.device)

    def shaken(self, x: Tensor) -> Tensor:
        """Scale and shift each slice of each modality, alike in both copies."""
        size = len(x) // 2, x.shape[1], 1, 1, x.shape[-1]
        scale, shift = (torch.rand(2, *size, device=x.device) * 2 - 1).mul(self.intensity).unbind()
        return x * (1 + scale).repeat(2, 1, 1, 1, 1) + shift.repeat(2, 1, 1, 1, 1)
