"""M3AE's first stage: reconstruct images of which most patches are masked, without labels."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bts_lightning.errors import ConfigError
from bts_lightning.losses import SegmentationLoss
from bts_lightning.modalities import MODALITIES
from bts_lightning.networks.backbone import Backbone, over
from bts_lightning.task import SegmentationTask


class MaskedAutoencodingTask(SegmentationTask):
    """Teach a network, and its substitute image, to restore what a few patches do not show.

    Liu et al.: M3AE, AAAI 2023; official code at fdb2800 (AGPL-3.0; nothing was copied). Of each
    modality that the sample keeps some patches are visible, so many in all whatever is kept; every
    other voxel is that of the substitute, which learns what the network can best restore from.

    Deviations: the target is the complete image, as in the code since June 2024; before, and in the
    paper's time, that program could overwrite it with the masked one. Modalities that a case really
    lacks have no target.

    Args:
        net: with a `substitute` and its way through the U-Net, as `networks.m3ae.M3AE` has. Its
            heads of a segmentation do not learn.
        optimizer: made from two groups of parameters.
        substitute_rate: the learning rate of the substitute; it follows the same schedule.
        visible: the share of all patches, of four modalities together.
        token: edge of a patch; the patches of the data are a multiple of it.
        smoothness: weight of the norm of the substitute around its mean in each modality.

    The others are those of `SegmentationTask`.
    """

    segments = False

    def __init__(
        self,
        net: Backbone,
        *,
        loss: SegmentationLoss,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        schedule: Callable[[Optimizer], LRScheduler] | None = None,
        substitute_rate: float = 5e-3,
        visible: float = 0.125,
        token: int = 16,
        smoothness: float = 0.005,
        main_loss_from_epoch: int = 0,
        channels_last: bool = False,
    ) -> None:
        super().__init__(
            net,
            loss=loss,
            optimizer=optimizer,
            schedule=schedule,
            main_loss_from_epoch=main_loss_from_epoch,
            channels_last=channels_last,
        )
        unet = with_substitute(net)
        if not 0 < visible <= 1 / len(MODALITIES):
            raise ConfigError(
                f"task.visible is {visible}; give a share of all patches above 0, and no more than "
                f"one modality has ({1 / len(MODALITIES)})"
            )
        self.substitute_rate = substitute_rate
        self.visible, self.token = visible, token
        self.smoothness = smoothness
        unet.requires_grad_(True)
        for heads in (unet.head, unet.deep):
            heads.requires_grad_(False)
        self.reconstruct = nn.Conv3d(unet.head.in_channels, len(MODALITIES), 1)

    def setup(self, stage: str) -> None:
        """Refuse a patch that is no whole number of tokens."""
        super().setup(stage)
        patch = self.trainer.datamodule.patch if stage == "fit" else ()  # type: ignore[attr-defined]
        if any(n % self.token for n in patch):
            raise ConfigError(
                f"data.patch is {list(patch)}, which is no multiple of task.token={self.token}"
            )

    def configure_optimizers(self) -> Any:
        """Give the substitute a rate of its own."""
        substitute = self.net.substitute
        rest = [p for p in self.parameters() if p.requires_grad and p is not substitute]
        make = self.make_optimizer
        groups: Any = [{"params": rest}, {"params": [substitute], "lr": self.substitute_rate}]
        self.make_optimizer = lambda parameters: make(groups)
        try:
            return super().configure_optimizers()
        finally:
            self.make_optimizer = make

    def _step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        image, available = batch["image"], batch["available"]
        if self.channels_last:
            image = image.contiguous(memory_format=torch.channels_last_3d)
        shown = self.draw(image, batch["present"])
        restored = self.restore(image, available, shown, self.place(batch))
        return self.terms(restored, image, available)

    def draw(self, image: Tensor, present: Tensor) -> Tensor:
        """Draw the visible tokens of each sample among those of its modalities, B×M×d×h×w bool."""
        grid = [n // self.token for n in image.shape[2:]]
        chance = torch.rand(*present.shape, *grid, device=image.device)
        chance = torch.where(over(present, chance), chance, 2.0).flatten(1)  # behind all others
        count = max(1, int(self.visible * chance.shape[1]))
        chosen = chance.topk(count, dim=1, largest=False).indices
        shown = torch.zeros_like(chance, dtype=torch.bool).scatter(1, chosen, True)
        return shown.view(*present.shape, *grid)

    def restore(
        self, image: Tensor, available: Tensor, shown: Tensor, place: Tensor | None
    ) -> Tensor:
        """Give the images that the network makes of the visible tokens, B×M×D×H×W."""
        net = with_substitute(self.net)
        features = net.encode(image, available, place)
        visible = F.interpolate(shown.float(), scale_factor=self.token, mode="nearest") > 0
        image = features.selected(0).squeeze(2)
        levels, _ = net.contracted(torch.where(visible, image, net.cut(features)))
        restored: Tensor = self.reconstruct(net.expanded(levels, levels[-1])[0])
        return restored

    def terms(self, restored: Tensor, image: Tensor, available: Tensor) -> dict[str, Tensor]:
        """Compare with the complete images; keep the substitute near its mean."""
        there = over(available, image)
        with torch.autocast(image.device.type, enabled=False):
            apart = torch.where(there, restored.float() - image, 0).square()
            voxels = available.sum() * image[0, 0].numel()
            return {
                "reconstruction": apart.sum() / voxels,
                "substitute": self.smoothness * spread(with_substitute(self.net).substitute[0]),
            }


def with_substitute(net: Backbone) -> Any:
    """Give a network that has a substitute image, or refuse it."""
    if not hasattr(net, "substitute"):
        raise ConfigError(
            f"task.net is {type(net).__name__}, which has no substitute image; this task needs "
            "bts_lightning.networks.m3ae.M3AE"
        )
    return net


def spread(substitute: Tensor) -> Tensor:
    """Give the norm of an image M×D×H×W around the mean of each modality.

    Row by row first: one sum over 36 million squares loses three digits in single precision.
    """
    apart = substitute - substitute.mean(dim=(1, 2, 3), keepdim=True)
    norm: Tensor = torch.linalg.vector_norm(torch.linalg.vector_norm(apart, dim=-1))
    return norm
