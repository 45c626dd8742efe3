"""The LightningModule: one training step around any network, loss, optimizer and schedule."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bts_lightning.chance import generator
from bts_lightning.errors import ConfigError
from bts_lightning.losses import SegmentationLoss
from bts_lightning.losses.surgery import operated_gradient
from bts_lightning.networks.backbone import Backbone, Output


class SegmentationTask(LightningModule):
    """Train a network; validation is what `callbacks.SubsetEvaluation` does with whole cases.

    Args:
        net: any network that obeys the contract.
        loss: owns the way from logits to regions and label map.
        optimizer: made from the parameters.
        schedule: made from the optimizer, stepped once an epoch.
        main_loss_from_epoch: before this epoch only auxiliary predictions learn (RFNet: 20).
        channels_last: keep weights and images in channels_last_3d, faster on recent GPUs.
        compile_net: compile the training step's network with torch.compile.
        gradients: `sum` those of all terms of the loss; or by `surgery` take out of each what
            points against another one (GMD). That holds a gradient a term in memory and goes
            backward once a term: with GMD's 15 subsets a step takes several times as long.

    Attributes:
        segments: what it trains can segment; a first stage that only prepares for another may not.
    """

    segments: bool = True

    def __init__(
        self,
        net: Backbone,
        *,
        loss: SegmentationLoss,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        schedule: Callable[[Optimizer], LRScheduler] | None = None,
        main_loss_from_epoch: int = 0,
        channels_last: bool = False,
        compile_net: bool = False,
        gradients: Literal["sum", "surgery"] = "sum",
    ) -> None:
        super().__init__()
        if compile_net and gradients == "surgery":
            raise ConfigError(
                "task.compile_net with task.gradients=surgery: a compiled backward pass runs once, "
                "surgery needs one a term; leave one of the two out"
            )
        if net.out_channels != loss.channels:
            raise ConfigError(
                f"net.out_channels={net.out_channels}, but {type(loss).__name__} reads "
                f"{loss.channels} channels; set net.out_channels={loss.channels}"
            )
        self.net = net
        self.loss = loss
        self.make_optimizer = optimizer
        self.make_schedule = schedule
        self.main_loss_from_epoch = main_loss_from_epoch
        self.channels_last = channels_last
        self.compile_net = compile_net
        self.operates = gradients == "surgery"
        self.watched: dict[str, Tensor] = {}

    def prepare_fit(self) -> None:
        """Refuse what cannot train, before the data are touched; by default nothing."""

    def setup(self, stage: str) -> None:
        """Choose memory format and compile, once the device and the averaged copy are settled."""
        if self.channels_last:
            self.net.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        if self.compile_net and stage == "fit":
            self.net.compile()
        if self.net.frame and stage == "fit":
            for case in self.trainer.datamodule.cases.values():  # type: ignore[attr-defined]
                self.net.check_frame(case.geometry.shape)
        if self.operates and stage == "fit" and self.trainer.precision == "16-mixed":
            raise ConfigError(
                "trainer.precision=16-mixed scales the loss, and task.gradients=surgery takes "
                "gradients before that; use bf16-mixed or 32-true"
            )

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Let dropout and sampling depend on the batch's place, so that a resume repeats them."""
        torch.manual_seed(int(generator(batch["seed"][0], "network").integers(2**63 - 1)))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Give the total loss of a batch."""
        terms = self._step(batch)
        total = self.log_terms(terms, batch)
        return self._operated(total, terms) if self.operates else total

    def log_terms(self, terms: dict[str, Tensor], batch: dict[str, Any]) -> Tensor:
        """Log the terms of a batch and give their sum."""
        total = torch.stack(list(terms.values())).sum()
        size = len(batch["case"])
        self.log("train/loss", total, prog_bar=True, on_step=True, batch_size=size)
        # Ranks add up once an epoch; adding up each step would cost a round of messages.
        self.log_dict(
            {"train/loss_epoch": total.detach()}
            | {f"train/{name}": value.detach() for name, value in (terms | self.watched).items()},
            on_step=False,
            on_epoch=True,
            sync_dist=True,
            batch_size=size,
        )
        return total

    def extra_terms(
        self, image: Tensor, output: Output, batch: dict[str, Any]
    ) -> dict[str, Tensor]:
        """Give losses, already weighted, that a task has beside those of its network."""
        return {}

    @torch.no_grad()
    def watch(self, output: Output, label: Tensor) -> None:
        """Keep for the log what teaches nothing; beside `elbo/kl` the other part and the bound."""
        self.watched = dict(output.watched)
        if "elbo/kl" in self.watched:
            with torch.autocast(label.device.type, enabled=False):
                reconstruction = self.loss.surprise(output.logits, label)
            bound = -(reconstruction + self.watched["elbo/kl"])
            self.watched |= {"elbo/reconstruction": reconstruction, "elbo/bound": bound}

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Do nothing: `callbacks/subsets.py` scores, since scores are of whole cases."""

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Do nothing: `callbacks/case_scorer.py` scores, and writes each case down."""

    def configure_optimizers(self) -> Any:
        """Make the optimizer and, if there is one, the schedule."""
        try:
            optimizer = self.make_optimizer(p for p in self.parameters() if p.requires_grad)
            if self.make_schedule is None:
                return optimizer
            return {"optimizer": optimizer, "lr_scheduler": self.make_schedule(optimizer)}
        except (ValueError, TypeError) as error:
            raise ConfigError(f"task.optimizer or task.schedule: {error}") from error

    def _operated(self, total: Tensor, terms: dict[str, Tensor]) -> Tensor:
        """Give a loss of the same value whose gradient is that after surgery.

        So clipping, accumulation and data-parallel training remain those of Lightning.
        """
        weights = [p for p in self.parameters() if p.requires_grad]
        chance = generator(self.global_step, "surgery")  # one order on all ranks, also resumed
        operated = operated_gradient(list(terms.values()), weights, chance)
        pairs = zip(weights, operated, strict=True)
        stand_in = torch.stack([(weight * gradient).sum() for weight, gradient in pairs]).sum()
        return total.detach() + stand_in - stand_in.detach()

    def place(self, batch: dict[str, Any]) -> Tensor | None:
        """Tell where patches lie in the grid of their files; some networks must know."""
        if self.net.frame and "place" not in batch:
            raise ConfigError(
                f"{type(self.net).__name__} must be told where each patch lies, and these batches "
                "do not say; train with bts_lightning.data.module.BratsDataModule"
            )
        return batch.get("place")

    @property
    def main_factor(self) -> float:
        """Say whether the final prediction learns in this epoch."""
        # A factor of zero instead of a skipped term: every parameter keeps its (zero) gradient.
        return float(self.current_epoch >= self.main_loss_from_epoch)

    def _step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        image = batch["image"]
        if self.channels_last:
            image = image.contiguous(memory_format=torch.channels_last_3d)
        output: Output = self.net(image, batch["present"], batch["available"], self.place(batch))
        label = batch["label"]
        self.watch(output, label)
        terms = {"main": self.main_factor * output.weight * self.loss(output.logits, label)}
        for extra in output.auxiliary:
            value = extra.weight * self.loss(extra.logits, label, extra.valid)
            if extra.valid is not None:
                # The loss is a mean over valid samples; a sample must weigh the same in any batch,
                # or two ranks would learn something else than one with both their samples.
                value = value * extra.valid.to(value.dtype).mean()
            terms[extra.name] = terms[extra.name] + value if extra.name in terms else value
        return terms | output.penalties | self.extra_terms(image, output, batch)
