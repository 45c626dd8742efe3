"""ACN: a path that sees a subset and one that sees all train together, with discriminators."""

import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, Literal

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


class CoTrainingTask(SegmentationTask):
    """Train a network on a subset together with a peer that sees all; only the first is evaluated.

    Wang et al.: ACN, MICCAI 2021; official code at 0643c57 (no licence; nothing was copied). Both
    paths learn to segment and to agree; the missing path also learns to tell the deepest features
    of the full one (mutual information), and to look like it to two discriminators, of entropy maps
    and of deepest features. Those learn to tell the paths apart, with an optimizer of their own.

    Deviations, each an option: `information="intended"` compares the missing path with the full
    one; as `released`, a path is compared with itself. `moments="kept"`: the discriminators' Adam
    remembers; as released it is made anew in each step, and every step is about lr · sign.
    All gradients come from one backward pass, in which the discriminators are constants to the
    paths and the paths to the discriminators: the official order of three passes gives the same.

    Args:
        net: the missing path, with `decode_with_depth` and `deepest` as `networks.acn.ACN` has.
        peer: the full path, of the same depth; sees all that a case has.
        discriminator_optimizer: made from the parameters of both discriminators.
        peer_share: of the segmentation loss of the full path; the missing path has the rest.
        consistency: the weight of the squared difference of predictions at full height.
        ramp_epochs: epochs until it is reached.
        information_weight: of the mutual information.
        entropy_weight: of what fools the discriminator of entropy maps.
        knowledge_weight: of what fools the discriminator of deepest features.
        information: see above.
        moments: see above.

    The others are those of `SegmentationTask`.
    """

    def __init__(
        self,
        net: Backbone,
        *,
        peer: Backbone,
        loss: SegmentationLoss,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        discriminator_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        schedule: Callable[[Optimizer], LRScheduler] | None = None,
        peer_share: float = 0.2,
        consistency: float = 10.0,
        ramp_epochs: int = 20,
        information_weight: float = 0.5,
        entropy_weight: float = 0.001,
        knowledge_weight: float = 0.0002,
        information: Literal["intended", "released"] = "intended",
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
        for name, path in (("net", net), ("peer", peer)):
            if not hasattr(path, "decode_with_depth"):
                raise ConfigError(
                    f"task.{name} is {type(path).__name__}, which does not tell its deepest "
                    "features; co-training needs bts_lightning.networks.acn.ACN, or a network with "
                    "its `decode_with_depth` and `deepest`"
                )
        depth: int = net.deepest  # type: ignore[assignment]
        if peer.deepest != depth or peer.out_channels != net.out_channels:
            raise ConfigError(
                f"task.peer has {peer.deepest} deepest and {peer.out_channels} output channels, "
                f"net {depth} and {net.out_channels}; give both the same"
            )
        self.automatic_optimization = False
        self.peer = peer
        self.information = InformationHead(depth)
        self.judges_entropy = entropy_discriminator(loss.channels)
        self.judges_knowledge = knowledge_discriminator(depth)
        self.make_discriminator_optimizer = discriminator_optimizer
        self.peer_share = peer_share
        self.consistency = consistency
        self.ramp_epochs = ramp_epochs
        self.information_weight = information_weight
        self.entropy_weight = entropy_weight
        self.knowledge_weight = knowledge_weight
        self.compares_with_itself = information == "released"
        self.forgets = moments == "anew"

    def setup(self, stage: str) -> None:
        """Give the peer the same memory format."""
        super().setup(stage)
        if self.channels_last:
            self.peer.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def configure_optimizers(self) -> Any:
        """Make one optimizer for both paths, with the schedule, and one for the discriminators."""
        judges = [self.judges_entropy, self.judges_knowledge]
        paths = [self.net, self.peer, self.information]
        try:
            both = self.make_optimizer(p for part in paths for p in part.parameters())
            judging = self.make_discriminator_optimizer(p for j in judges for p in j.parameters())
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
            full, full_depth, missing, depth = (
                x.float() for x in (full, full_depth, missing, depth)
            )
            return self.terms(full, full_depth, missing, depth, label)

    def terms(
        self, full: Tensor, full_depth: Tensor, missing: Tensor, depth: Tensor, label: Tensor
    ) -> dict[str, Tensor]:
        """Give all weighted terms, from the logits and the deepest features of both paths."""
        predicted = self.loss.probabilities(full), self.loss.probabilities(missing)
        entropies = [entropy_map(p) for p in predicted]
        target = depth if self.compares_with_itself else full_depth
        judged = {
            "entropy": (self.judges_entropy, entropies[0], entropies[1], self.entropy_weight),
            "knowledge": (self.judges_knowledge, full_depth, depth, self.knowledge_weight),
        }
        terms = {
            "full": self.peer_share * self.loss(full, label),
            "main": self.main_factor * (1 - self.peer_share) * self.loss(missing, label),
            "consistency": self.ramp() * disagreement(*predicted),
            "information": self.information_weight * self.information(depth, target),
        }
        for name, (judge, of_full, of_missing, weight) in judged.items():
            terms[f"fools/{name}"] = weight * judgement(frozen(judge, of_missing), FULL)
            told = judgement(judge(of_full.detach()), FULL)
            told = told + judgement(judge(of_missing.detach()), MISSING)
            terms[f"judges/{name}"] = 0.5 * told
        return terms

    def ramp(self) -> float:
        """Give the weight of the consistency in this epoch."""
        left = 1 - min(self.current_epoch, self.ramp_epochs) / max(1, self.ramp_epochs)
        return self.consistency * math.exp(-5 * left**2)


class InformationHead(nn.Module):
    """Guess the deepest features of one path from those of the other, as a Gaussian.

    The negative logarithm of its density bounds the mutual information of the two.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [nn.Conv3d(width, width, 1, bias=False) for _ in range(3)]
        self.guess = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
        # Softplus of it is a variance of 5 at the start.
        self.log_scale = nn.Parameter(torch.full((width,), math.log(math.exp(5 - 1e-5) - 1)))

    def forward(self, depth: Tensor, target: Tensor) -> Tensor:
        variance = F.softplus(self.log_scale).view(-1, 1, 1, 1) + 1e-5
        far = (self.guess(depth) - target).square() / variance + variance.log()
        return 0.5 * far.mean()


def run(path: Backbone, image: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Give the logits and the deepest features of a path."""
    features: Features = path.encode(image, present)
    output: Output
    output, depth = path.decode_with_depth(features)  # type: ignore[operator]
    return output.logits, depth


def entropy_map(maps: Tensor) -> Tensor:
    """Give for each map its part of the entropy, at most 1; the maps compete in a soft-max."""
    share = maps.softmax(dim=1)
    return -share * torch.log2(share + 1e-30) / math.log2(maps.shape[1])


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


def entropy_discriminator(channels: int) -> nn.Sequential:
    """Look at entropy maps in windows of 32 voxels and more."""
    widths = [channels, 64, 128, 256, 512, 1]
    return _chain([nn.Conv3d(a, b, 4, 2, 1) for a, b in pairwise(widths)])


def knowledge_discriminator(width: int) -> nn.Sequential:
    """Look at deepest features."""
    widths, strides = [width, 256, 512, 1], (1, 1, 2)
    return _chain(
        [
            nn.Conv3d(a, b, 3, stride, 1)
            for (a, b), stride in zip(pairwise(widths), strides, strict=True)
        ]
    )


def _chain(layers: list[nn.Conv3d]) -> nn.Sequential:
    parts: list[nn.Module] = []
    for layer in layers:
        parts += [layer, nn.LeakyReLU(0.2)]
    return nn.Sequential(*parts[:-1])
