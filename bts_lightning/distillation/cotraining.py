"""ACN: a path that sees a subset and one that sees all train together, with discriminators."""

import math
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bts_lightning.distillation.paths import TwoPathsTask, chain
from bts_lightning.networks.backbone import Backbone


class CoTrainingTask(TwoPathsTask):
    """Let the missing path match the deepest features and the entropy of the full one.

    Wang et al.: ACN, MICCAI 2021; official code at 0643c57 (no licence; nothing was copied). Both
    paths learn to segment and to agree; the missing path also learns to tell the deepest features
    of the full one (mutual information), and to look like it to two discriminators, of entropy maps
    and of deepest features. Those learn to tell the paths apart, with an optimizer of their own.

    Deviation, an option: `information="intended"` compares the missing path with the full one; as
    `released`, a path is compared with itself.

    Args:
        information_weight: of the mutual information.
        entropy_weight: of what fools the discriminator of entropy maps.
        knowledge_weight: of what fools the discriminator of deepest features.
        information: see above.

    The others are those of `TwoPathsTask`.
    """

    def __init__(
        self,
        net: Backbone,
        *,
        peer_share: float = 0.2,
        information_weight: float = 0.5,
        entropy_weight: float = 0.001,
        knowledge_weight: float = 0.0002,
        information: Literal["intended", "released"] = "intended",
        **options: Any,
    ) -> None:
        super().__init__(net, peer_share=peer_share, **options)
        self.information = InformationHead(self.depth)
        self.judges_entropy = entropy_discriminator(self.loss.channels)
        self.judges_knowledge = knowledge_discriminator(self.depth)
        self.information_weight = information_weight
        self.entropy_weight = entropy_weight
        self.knowledge_weight = knowledge_weight
        self.compares_with_itself = information == "released"

    def matched(
        self, maps: tuple[Tensor, Tensor], depths: tuple[Tensor, Tensor]
    ) -> dict[str, Tensor]:
        """Compare deepest features and entropy maps."""
        full, missing = depths
        told = self.information(missing, missing if self.compares_with_itself else full)
        seen = entropy_map(maps[0]), entropy_map(maps[1])
        weights = self.entropy_weight, self.knowledge_weight
        return (
            {"information": self.information_weight * told}
            | self.judged("entropy", self.judges_entropy, seen, fools=weights[0], learns=0.5)
            | self.judged("knowledge", self.judges_knowledge, depths, fools=weights[1], learns=0.5)
        )


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


def entropy_map(maps: Tensor) -> Tensor:
    """Give for each map its part of the entropy, at most 1; the maps compete in a soft-max."""
    share = maps.softmax(dim=1)
    return -share * torch.log2(share + 1e-30) / math.log2(maps.shape[1])


def entropy_discriminator(channels: int) -> nn.Sequential:
    """Look at entropy maps in windows of 32 voxels and more."""
    widths = [channels, 64, 128, 256, 512, 1]
    return chain([nn.Conv3d(a, b, 4, 2, 1) for a, b in pairwise(widths)])


def knowledge_discriminator(width: int) -> nn.Sequential:
    """Look at deepest features."""
    widths, strides = [width, 256, 512, 1], (1, 1, 2)
    return chain(
        [
            nn.Conv3d(a, b, 3, stride, 1)
            for (a, b), stride in zip(pairwise(widths), strides, strict=True)
        ]
    )
