"""Small parts that the configuration tests build experiments from."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import torch
from lightning import LightningDataModule, LightningModule
from torch import nn
from torch.optim import Optimizer


class Net(nn.Module):
    """A network that only has options."""

    def __init__(
        self,
        width: int = 32,
        *,
        dropout: float = 0.0,
        fusion: Literal["mean", "max"] = "mean",
        heads: tuple[int, ...] = (1, 2),
        shape: int | tuple[int, int, int] = 3,
    ) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width {width} is less than 1")
        self.width, self.dropout, self.fusion, self.heads = width, dropout, fusion, heads
        self.layer = nn.Linear(width, 1)
        self.shape = shape


class Aligned(nn.Module):
    """A network around another."""

    def __init__(self, backbone: Net, *, weight: float = 1.0) -> None:
        super().__init__()
        self.backbone, self.weight = backbone, weight


class Task(LightningModule):
    """A task that keeps what it was given."""

    def __init__(
        self, net: nn.Module, *, optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    ) -> None:
        super().__init__()
        self.net, self.make_optimizer = net, optimizer


class Data(LightningDataModule):
    """A data module that keeps what it was given."""

    def __init__(
        self, root: Path, *, batch_size: int = 1, transforms: list[nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.root, self.batch_size, self.transforms = root, batch_size, transforms


class NotOfAnyKind:
    """A class that no slot of an experiment can hold."""


def make_net() -> Net:
    """Build a network; as a function it must be refused."""
    torch.manual_seed(0)
    return Net()
