"""Two paths, of a subset and of all modalities, that train together beside discriminators."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bts_lightning.errors import ConfigError
from bts_lightning.losses import SegmentationLoss
from bts_lightning.networks.backbone import Backbone, Features, Output
from bts_lightning.task import SegmentationTask

# What a discriminator is to say of the two paths.
FULL, MISSING = 0.0, 1.0


class TwoPathsTask(SegmentationTask, ABC):
    """Train a network on a subset together with a peer that sees all; only the first is evaluated.

    All gradients come from one backward pass, in which the discriminators are constants to the
    paths and the paths to the discriminators: the official order of three passes gives the same.
    Attributes whose names begin with `judges_` are the discriminators; all else learns with the
    paths.

    Attributes:
        needs: what both paths must have, and an experiment whose network has it.

    Args:
        net: the missing path.
        peer: the full path, of the same depth; sees all that a case has.
        discriminator_optimizer: made from the parameters of the discriminators.
        peer_share: of the segmentation loss of the full path; the missing path has the rest.
        consistency: the weight of the squared difference of predictions at full height.
        ramp_epochs: epochs until it is reached.
        moments: `kept`: the discriminators' optimizer remembers. `anew`, as released: its moments
            are made anew in each step, and every step of Adam is about lr · sign.

    The others are those of `SegmentationTask`.
    """

    needs: ClassVar[tuple[str, str]] = ("decode_with_depth", "acn")

    def __init__(
        self,
        net: Backbone,
        *,
        peer: Backbone,
        loss: SegmentationLoss,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        discriminator_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        schedule: Callable[[Optimizer], LRScheduler] | None = None,
        peer_share: float = 0.5,
        consistency: float = 10.0,
        ramp_epochs: int = 20,
        moments: Literal["kept", "anew"] = "kept",
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
        part, example = self.needs
        for name, path in (("net", net), ("peer", peer)):
            if not hasattr(path, part):
                raise ConfigError(
                    f"task.{name} is {type(path).__name__}, which has no `{part}`; "
                    f"{type(self).__name__} needs one, as the networks of `{example}` have"
                )
        self.depth: int = net.deepest  # type: ignore[assignment]
        if peer.deepest != self.depth or peer.out_channels != net.out_channels:
            raise ConfigError(
                f"task.peer has {peer.deepest} deepest and {peer.out_channels} output channels, "
                f"net {self.depth} and {net.out_channels}; give both the same"
            )
        self.automatic_optimization = False
        self.peer = peer
        self.make_discriminator_optimizer = discriminator_optimizer
        self.peer_share = peer_share
        self.consistency = consistency
        self.ramp_epochs = ramp_epochs
        self.forgets = moments == "anew"

    def setup(self, stage: str) -> None:
        """Give the peer the same memory format."""
        super().setup(stage)
        if self.channels_last:
            self.peer.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def configure_optimizers(self) -> Any:
        """Make one optimizer for both paths, with the schedule, and one for the discriminators."""
        judges = {n: p for n, p in self.named_parameters() if n.startswith("judges_")}
        try:
            both = self.make_optimizer(p for n, p in self.named_parameters() if n not in judges)
            judging = self.make_discriminator_optimizer(judges.values())
            schedules = [] if self.make_schedule is None else [self.make_schedule(both)]
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"task.optimizer, task.discriminator_optimizer or task.schedule: {error}"
            ) from error
        return [both, judging], schedules

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:  # type: ignore[override]
        """Learn from a batch: one backward pass, then both optimizers."""
        terms = self._step(batch)
        total = self.log_terms(terms, batch)
        self.manual_backward(total)
        optimizers = self.optimizers()
        assert isinstance(optimizers, list)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if self.forgets:
            judging = optimizers[1]
            assert isinstance(judging, LightningOptimizer)
            judging.optimizer.state.clear()

    def on_train_epoch_end(self) -> None:
        """Let the schedule go on; without automatic optimization nobody else does."""
        schedule = self.lr_schedulers()
        if isinstance(schedule, LRScheduler):
            schedule.step()

    def _step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        image, label = batch["image"], batch["label"]
        if self.channels_last:
            image = image.contiguous(memory_format=torch.channels_last_3d)
        full, full_depth = run(self.peer, image, batch["available"])
        missing, depth = run(self.net, image, batch["present"])
        with torch.autocast(image.device.type, enabled=False):
            both = (full.float(), missing.float()), (full_depth.float(), depth.float())
            return self.terms(*both, label)

    def terms(
        self, logits: tuple[Tensor, Tensor], depths: tuple[Tensor, Tensor], label: Tensor
    ) -> dict[str, Tensor]:
        """Give all weighted terms, from what the full and the missing path made."""
        full, missing = logits
        maps = self.loss.probabilities(full), self.loss.probabilities(missing)
        return {
            "full": self.peer_share * self.loss(full, label),
            "main": self.main_factor * (1 - self.peer_share) * self.loss(missing, label),
            "consistency": self.ramp() * disagreement(*maps),
        } | self.matched(maps, depths)

    @abstractmethod
    def matched(
        self, maps: tuple[Tensor, Tensor], depths: tuple[Tensor, Tensor]
    ) -> dict[str, Tensor]:
        """Give the weighted terms of a method, from probabilities and deepest features."""

    def judged(
        self,
        name: str,
        judge: nn.Module,
        seen: tuple[Tensor, Tensor],
        *,
        fools: float,
        learns: float,
    ) -> dict[str, Tensor]:
        """Let a discriminator learn from the full and the missing path, and the latter fool it."""
        of_full, of_missing = seen
        told = judgement(judge(of_full.detach()), FULL)
        told = told + judgement(judge(of_missing.detach()), MISSING)
        return {
            f"fools/{name}": fools * judgement(frozen(judge, of_missing), FULL),
            f"judges/{name}": learns * told,
        }

    def ramp(self) -> float:
        """Give the weight of the consistency in this epoch."""
        left = 1 - min(self.current_epoch, self.ramp_epochs) / max(1, self.ramp_epochs)
        return self.consistency * math.exp(-5 * left**2)


def run(path: Backbone, image: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Give the logits and the deepest features of a path."""
    features: Features = path.encode(image, present)
    output: Output
    output, depth = path.decode_with_depth(features)  # type: ignore[operator]
    return output.logits, depth


def disagreement(full: Tensor, missing: Tensor) -> Tensor:
    """Add up the mean squared differences of all maps but the background."""
    return (full - missing)[:, 1:].square().mean(dim=(0, 2, 3, 4)).sum()


def judgement(said: Tensor, truth: float) -> Tensor:
    """Compare what a discriminator says, everywhere, with the truth."""
    return F.binary_cross_entropy_with_logits(said, torch.full_like(said, truth))


def frozen(judge: nn.Module, x: Tensor) -> Tensor:
    """Ask a discriminator that is not to learn from being fooled."""
    said: Tensor = functional_call(judge, {k: p.detach() for k, p in judge.named_parameters()}, x)
    return said


def chain(layers: Iterable[nn.Module]) -> nn.Sequential:
    """Put a leaky rectifier between the layers of a discriminator."""
    parts: list[nn.Module] = []
    for layer in layers:
        parts += [layer, nn.LeakyReLU(0.2)]
    return nn.Sequential(*parts[:-1])
