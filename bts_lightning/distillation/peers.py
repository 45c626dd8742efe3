"""Modalities of a sample teach each other: LCKD elects the teachers, MetaKD weighs them."""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn

from bts_lightning.chance import generator
from bts_lightning.data.cache.prepare import CachedCase
from bts_lightning.errors import ConfigError
from bts_lightning.inference import Protocol
from bts_lightning.inference.sliding import each_average
from bts_lightning.losses import SegmentationLoss, over_ranks, regions_of
from bts_lightning.modalities import MODALITIES, Modality, Subset, subsets_within
from bts_lightning.networks.backbone import Backbone, Output, over
from bts_lightning.task import SegmentationTask

# In the official order: the first of equals is elected.
CANDIDATES: tuple[Modality, ...] = ("flair", "t1", "t1c", "t2")


class Teaching(nn.Module, ABC):
    """Base of what says who teaches whom: it learns after the first step, then every few steps.

    What it knows are buffers: in the checkpoint, and the same on all ranks.

    Args:
        every: steps between two lessons; 0: never.
    """

    taught_after: Tensor

    def __init__(self, every: int) -> None:
        super().__init__()
        if every < 0:
            raise ConfigError(f"every is {every}; give a number of steps, or 0 for never")
        self.every = every
        # So that a training that goes on neither repeats a lesson nor leaves one out.
        self.register_buffer("taught_after", torch.zeros((), dtype=torch.long))

    def check(self, data: Any) -> None:
        """Refuse data that it cannot learn from; by default nothing."""

    def pause(self, epoch: int) -> int:
        """Give the steps between two lessons; 0: never."""
        return self.every

    @abstractmethod
    def shares(self) -> Tensor:
        """Say how much each modality (row) teaches each one (column), M×M."""

    @abstractmethod
    def learn(self, net: Backbone, loss: SegmentationLoss, data: Any) -> None:
        """Take a lesson."""

    @abstractmethod
    def told(self) -> Tensor:
        """Give the weight of each modality for the log, M."""


class PeerTask(SegmentationTask):
    """Pull the deepest features of each modality to those of its teachers in the same sample.

    Any network that keeps the modalities apart can be the host. A modality that a sample does not
    show teaches and learns nothing there. Officially a batch has one subset; here each sample has
    its own, and the term is the mean over samples.

    Args:
        net: any network with `fused_levels`.
        teaching: who teaches whom.
        weight: of the distances between features of the deepest fused level.

    The others are those of `SegmentationTask`.
    """

    def __init__(
        self,
        net: Backbone,
        *,
        teaching: Teaching,
        weight: float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(net, **options)
        if not net.fused_levels:
            raise ConfigError(
                f"{type(net).__name__} mixes the modalities in its first layer, so none can teach "
                "another one; use a network that encodes each modality alone"
            )
        self.teaching = teaching
        self.weight = weight

    def on_fit_start(self) -> None:
        """Refuse data that teach the teachers nothing."""
        self.teaching.check(self._data)

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Hold a lesson that follows the step before; then as every task."""
        # Not at the end of that step: a checkpoint of its end would be without the lesson.
        step, pause = self.global_step, self.teaching.pause(self.current_epoch)
        is_due = step > 0 and pause > 0 and (step - 1) % pause == 0
        if is_due and int(self.teaching.taught_after) != step:
            self.teaching.taught_after.fill_(step)
            self.teaching.learn(self.net, self.loss, self._data)
        super().on_train_batch_start(batch, batch_idx)

    def on_train_epoch_end(self) -> None:
        """Log who teaches how much."""
        weights = zip(MODALITIES, self.teaching.told().tolist(), strict=True)
        self.log_dict({f"train/teaches/{name}": weight for name, weight in weights})

    def extra_terms(
        self, image: Tensor, output: Output, batch: dict[str, Any]
    ) -> dict[str, Tensor]:
        """Give what the modalities learn from each other."""
        features, level = output.features, self.net.fused_levels[-1]
        assert features is not None  # `forward` fills them in
        distances = apart(features.levels[level], features.present[level])
        return {"peers": self.weight * (self.teaching.shares() * distances).sum(dim=(1, 2)).mean()}

    @property
    def _data(self) -> Any:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        return data


class Elected(Teaching):
    """Let modalities teach that segment some region best when they are alone: LCKD.

    Wang et al., MICCAI 2023; official code: github.com/billhhh/LCKD at 5ba51b5 (no licence; nothing
    was copied). Training cases vote by the soft Dice of whole volumes, windows averaged as logits.
    The winner of each region teaches, and teaches everything. The released program keeps the
    teachers in no checkpoint; here they are. With `every=0` the `first` teach to the end, as in
    AImageLab's copy (IM-Fuse, 432f9af), which never votes.

    Args:
        protocol: window and overlap.
        every: steps between two elections, the first after the first step; 0: never.
        voters: how many training cases vote; all if there are fewer.
        first: who teaches until then.
        seed: of the choice of voters.
    """

    teachers: Tensor

    def __init__(
        self,
        protocol: Protocol,
        *,
        every: int = 5000,
        voters: int = 57,
        first: list[Modality] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(every)
        if voters < 1:
            raise ConfigError(f"voters is {voters}; the smallest is 1, and every=0 asks nobody")
        self.protocol = replace(protocol, average="logits")
        self.voters = voters
        self.seed = seed
        known = ["flair"] if first is None else first
        if strange := set(known) - set(MODALITIES):
            raise ConfigError(f"first names {strange.pop()!r}; give some of {list(MODALITIES)}")
        self.register_buffer("teachers", torch.tensor([name in known for name in MODALITIES]))

    def shares(self) -> Tensor:
        return self.teachers.float().unsqueeze(1).expand(-1, len(MODALITIES))

    def told(self) -> Tensor:
        return self.teachers.float()

    @torch.no_grad()
    def learn(self, net: Backbone, loss: SegmentationLoss, data: Any) -> None:
        """Hold an election; each rank asks its share of the voters."""
        names = sorted(data.split.train)
        order = generator(self.seed, "voters").permutation(len(names))[: self.voters]
        rank, world = data.place
        found = torch.zeros(2, len(MODALITIES), len(loss.scheme.regions))
        for number in order[rank::world]:
            case = data.cases[names[number]]
            found += self.votes(net, loss, case, data.shows(case.name)).to(found)
        scores, count = over_ranks(found.to(self.teachers.device))
        scores = torch.where(count > 0, scores / count.clamp(min=1), -torch.inf)
        rows = [MODALITIES.index(name) for name in CANDIDATES]
        winners = scores[rows].argmax(dim=0)
        self.teachers.zero_()
        self.teachers[[rows[winner] for winner in winners.tolist()]] = True

    def votes(
        self, net: Backbone, loss: SegmentationLoss, case: CachedCase, shown: Subset
    ) -> Tensor:
        """Give the soft Dice of each region from each modality alone, and which were there, 2×M×R.

        Both are summed by the caller.
        """
        alone = [tuple(m == own for m in MODALITIES) for own in MODALITIES]
        singles = subsets_within(shown, alone)  # type: ignore[arg-type]
        device = self.teachers.device
        votes = torch.zeros(2, len(MODALITIES), len(loss.scheme.regions), device=device)
        label = torch.from_numpy(np.array(case.label)).unsqueeze(0).to(device)
        truth = regions_of(label, loss.scheme)[0].flatten(1)
        averages = each_average(
            net, loss, case.image, case.available, self.protocol, singles, device
        )
        for single, average in zip(singles, averages, strict=True):
            p = loss.of_regions(average.to(device))[0].flatten(1)
            both = p.sum(dim=1) + truth.sum(dim=1)
            dice = 2 * torch.where(truth, p, 0).sum(dim=1) / (both + 1)
            votes[:, single.index(True)] = torch.stack([dice, torch.ones_like(dice)])
        return votes


class Weighed(Teaching):
    """Let every modality teach every other one, by weights that learn from cases held out: MetaKD.

    Wang et al.: Enhancing Multi-modal Learning: Meta-learned Cross-modal Knowledge Distillation for
    Handling Missing Modalities, arXiv 2405.07155; official code: github.com/billhhh/MetaKD at
    e66b45f (no licence; nothing was copied). A lesson shows crops of the cases that
    `data.held_out` keeps from the network. The deepest features of each modality are scaled by its
    weight there, and nowhere else; the loss of the segmentation then moves the weights.

    Deviations: lessons run in single precision and in evaluation mode, which the official network
    does not tell from training.

    Args:
        every: steps between two lessons, the first after the first step; 0: never.
        then_every: the same after the first epochs.
        first_epochs: how many these are; those on complete samples, officially.
        crops: of a lesson, a step of Adam each.
        lr: of Adam.
        weight_decay: of Adam.
    """

    theta: Tensor
    mean: Tensor
    square: Tensor
    steps: Tensor

    def __init__(
        self,
        *,
        every: int = 100,
        then_every: int = 500,
        first_epochs: int = 320,
        crops: int = 20,
        lr: float = 1e-2,
        weight_decay: float = 5e-4,
    ) -> None:
        super().__init__(every)
        self.then_every = then_every
        self.first_epochs = first_epochs
        self.crops = crops
        self.lr = lr
        self.weight_decay = weight_decay
        # No parameters: the optimizer of the network and data-parallel training leave them alone.
        self.register_buffer("theta", torch.rand(len(MODALITIES)))
        self.register_buffer("mean", torch.zeros(len(MODALITIES)))
        self.register_buffer("square", torch.zeros(len(MODALITIES)))
        self.register_buffer("steps", torch.zeros(()))

    def check(self, data: Any) -> None:
        """Ask for cases to learn from."""
        if not data.held_out:
            raise ConfigError(
                "weights of modalities learn from training cases that the network does not see, and"
                " data.held_out is 0; set data.held_out=5"
            )

    def pause(self, epoch: int) -> int:
        return self.every if epoch < self.first_epochs else self.then_every

    def shares(self) -> Tensor:
        shares = self.told()
        return (shares.unsqueeze(1) / shares).fill_diagonal_(0)

    def told(self) -> Tensor:
        return self.theta.softmax(dim=0)

    def learn(self, net: Backbone, loss: SegmentationLoss, data: Any) -> None:
        """Take a step for each crop; each rank looks at all of them."""
        patches = data.patches_of(data.held_out, self.crops)
        for crop in range(self.crops):
            batch = patches.batch(int(self.taught_after), crop)
            batch = data.on_after_batch_transfer(move_data_to_device(batch, self.theta.device), 0)
            _, gradient = self.gradient(net, loss, batch)
            # Equal but for rounding, which must not drive the ranks apart.
            self.step(over_ranks(gradient) / data.place[1])

    def gradient(
        self, net: Backbone, loss: SegmentationLoss, batch: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Give the loss of a batch, and how it moves with the weights."""
        theta = self.theta.clone().requires_grad_()
        level = net.fused_levels[-1]
        with net.evaluating(), torch.enable_grad():
            with torch.no_grad():
                features = net.encode(batch["image"], batch["available"])
            levels = list(features.levels)
            shares = theta.softmax(dim=0).unsqueeze(0)
            levels[level] = levels[level] * over(shares, levels[level])
            logits = net.decode(replace(features, levels=tuple(levels))).logits
            value = loss(logits, batch["label"])
            (gradient,) = torch.autograd.grad(value, theta)
        return value.detach(), gradient

    @torch.no_grad()
    def step(self, gradient: Tensor) -> None:
        """Let Adam move the weights; what it remembers lies in the buffers."""
        adam = torch.optim.Adam([self.theta], lr=self.lr, weight_decay=self.weight_decay)
        moments = {"step": self.steps, "exp_avg": self.mean, "exp_avg_sq": self.square}
        adam.state[self.theta] = moments
        self.theta.grad = gradient
        adam.step()
        self.theta.grad = None


def apart(x: Tensor, present: Tensor) -> Tensor:
    """Give the mean distance of features B×M×C×D×H×W, 0 where one is absent: B×M×M.

    Rows are teachers, which do not move.
    """
    with torch.autocast(x.device.type, enabled=False):
        whole = torch.promote_types(x.dtype, torch.float32)
        x = torch.where(over(present, x), x, 0).to(whole)
        rows = [
            (x[:, m : m + 1].detach() - x).abs().flatten(2).mean(dim=2)
            for m in range(len(MODALITIES))
        ]
        both = present.unsqueeze(2) & present.unsqueeze(1)
        return torch.where(both, torch.stack(rows, dim=1), 0)
