"""Networks and cases for the tests of inference."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bts_lightning.inference import Protocol, each_subset
from bts_lightning.losses import SegmentationLoss
from bts_lightning.modalities import Subset
from bts_lightning.networks.backbone import Backbone, Features, Output

ALL = (True, True, True, True)


class Blur(Backbone):
    """A tiny network: a convolution of each modality, their mean, another convolution."""

    divisor = 4

    def __init__(self, channels: int = 3, kernel: int = 3) -> None:
        super().__init__(channels)
        self.own = nn.ModuleList(nn.Conv3d(1, 4, kernel, padding=kernel // 2) for _ in range(4))
        self.head = nn.Conv3d(4, channels, kernel, padding=kernel // 2)
        self.encoded = self.decoded = 0

    def encode_levels(self, image: Tensor, present: Tensor) -> tuple[Tensor, ...]:
        self.encoded += len(image)
        return (torch.stack([c(image[:, m : m + 1]) for m, c in enumerate(self.own)], dim=1),)

    def decode(self, features: Features) -> Output:
        self.decoded += len(features.real)
        count = features.present[0].sum(dim=1).view(-1, 1, 1, 1, 1)
        return Output(self.head(F.relu(features.selected(0).sum(dim=1) / count)))


class Forgetful(Blur):
    """The same, but its memory holds no more than two subsets."""

    def decode(self, features: Features) -> Output:
        if len(features.real) > 2:
            raise torch.OutOfMemoryError("no room for more than two")
        return super().decode(features)


class Sharing(Blur):
    """The same, but it says that it decodes subsets better together."""

    def decode_subsets(self, features: Features, subsets: Tensor) -> Tensor:
        return super().decode_subsets(features, subsets)


def make(kind: type[Blur] = Blur, **arguments: int) -> Blur:
    torch.manual_seed(0)
    return kind(**arguments)


def case(*size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((4, *size)).astype(np.float16)


def averaged_over(
    net: Backbone,
    loss: SegmentationLoss,
    image: np.ndarray,
    protocol: Protocol,
    shown: Subset,
    available: Subset = ALL,
) -> np.ndarray:
    """Give the averaged probabilities of one subset, C×D×H×W."""
    ((_, averaged),) = each_subset(net, loss, image, available, protocol, [shown])
    return averaged[0].numpy()
