"""U-Net-MFI: four U-Nets exchange features at five places, weighted by who is there."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bts_lightning.errors import ConfigError
from bts_lightning.modalities import MODALITIES
from bts_lightning.networks.backbone import Auxiliary, Backbone, Features, Output, Weigher, over
from bts_lightning.networks.modules import Modules
from bts_lightning.networks.presence import (
    Presence,
    full_precision,
    is_nobody,
    is_worth_sharing,
    lacking,
    stack_pyramids,
)

# Channels that a normalisation takes together.
GROUP = 8
# Halvings after that of the stem, with an exchange after each and one more before.
STEPS = 2


class MFI(Backbone):
    """Run a U-Net on each modality and mix what they see; an absent modality is a zero image.

    Zhao, Yang, Sun: Modality-adaptive Feature Interaction for Brain Tumor Segmentation with Missing
    Modalities, MICCAI 2022. Official code: github.com/zzc1909/UNET-MFI at 136f342 (no licence;
    nothing was copied).

    The first two blocks of each tower see its own modality alone; from the second scale on every
    tower reads all others. A tower whose modality is absent runs on, on a zero image, and the
    weights of the exchange are told which these are.

    Deviations: left out are 3,200,640 weights: the exchange has four perceptrons there, and uses
    the first of them alone.

    Args:
        width: channels of the finest level, a multiple of 8.
        out_channels: 3 for regions, 4 for labels.

    Example:
        >>> net = MFI(width=8).eval()
        >>> present = torch.tensor([[True, False, True, True]])
        >>> net(torch.randn(1, 4, 16, 16, 16), present).logits.shape
        torch.Size([1, 3, 16, 16, 16])
    """

    divisor = 2 ** (STEPS + 1)
    least_width = GROUP
    fused_levels = (0, 1)

    def __init__(self, *, width: int = 32, out_channels: int = 3) -> None:
        super().__init__(out_channels, width=width)
        if width % GROUP:
            raise ConfigError(f"width is {width}; U-Net-MFI needs a multiple of {GROUP}")
        widths = [width * 2**level for level in range(STEPS + 2)]
        inner = widths[1:]
        self.stems = Modules(Stem(*widths[:2]) for _ in MODALITIES)
        self.towers = Modules(Tower(widths) for _ in MODALITIES)
        self.heads = Modules(nn.Conv3d(width, out_channels, kernel_size=1) for _ in MODALITIES)
        self.exchanges_down = Modules(
            Exchange(w, Weigher("exchange down", level)) for level, w in enumerate(inner, 1)
        )
        self.exchanges_up = Modules(
            Exchange(inner[i], Weigher("exchange up", i + 1)) for i in reversed(range(STEPS))
        )
        self.head = MeanHead(out_channels)
        self.coarse_heads = Modules(
            nn.Conv3d(w, out_channels, kernel_size=3, padding=1) for w in reversed(inner[:-1])
        )

    @classmethod
    def small(cls) -> dict[str, Any]:
        """Give arguments of the same wiring that run in a blink."""
        return {"width": GROUP}

    def encode_levels(self, image: Tensor, present: Tensor) -> tuple[Tensor, ...]:
        """Run the stems of what is there; those of zero images belong to `decode`."""
        flags = Presence([present], read=True)

        def stem(m: int) -> tuple[Tensor, ...] | None:
            levels: tuple[Tensor, ...] = self.stems[m](image[:, m : m + 1])
            return levels

        return stack_pyramids(lambda m: None if is_nobody(flags.rows(m)) else stem(m))

    def weighers(self) -> tuple[Weigher, ...]:
        """Tell what towers take of each, averaged over channels and towers."""
        return tuple(each.weigher for each in (*self.exchanges_down, *self.exchanges_up))

    def decode(self, features: Features) -> Output:
        return self.exchange(features, self.blanks(features))

    def decode_subsets(self, features: Features, subsets: Tensor) -> Tensor:
        """Run the zero images once for all subsets of a case."""
        if not is_worth_sharing(features.levels):
            return super().decode_subsets(features, subsets)
        blanks = self.blanks(features.restrict(subsets))
        rows = [features.restrict(subsets[row : row + 1]) for row in range(len(subsets))]
        logits = [self.exchange(seen, blanks).logits for seen in rows]
        return torch.stack(logits)  # S B C D H W

    def blanks(self, features: Features) -> list[Sequence[Tensor] | None]:
        """Give the levels of a zero image for each modality that some sample lacks, 1×C×D×H×W.

        They depend on weights and size alone.
        """
        finest = features.levels[0]
        zeros = finest.new_zeros(1, 1, *finest.shape[3:])
        return [
            stem(zeros) if is_lacking else None
            for stem, is_lacking in zip(self.stems, lacking(features.present), strict=True)
        ]

    def exchange(self, features: Features, blanks: Sequence[Sequence[Tensor] | None]) -> Output:
        """Run the towers side by side, and mix their features where they exchange them."""
        fine, x = (self.filled(features, level, blanks) for level in self.fused_levels)
        present = features.present[1]
        skips, stages = [fine], []
        for step, mix in enumerate(self.exchanges_down):
            if step:
                x = [tower.down[step - 1](y) for tower, y in zip(self.towers, x, strict=True)]
            x = mix(x, present)
            x = [tower.inward[step](y) for tower, y in zip(self.towers, x, strict=True)]
            skips.append(x)
        for step, skip in enumerate(reversed(skips[:-1])):
            x = [tower.up[step](y) + s for tower, y, s in zip(self.towers, x, skip, strict=True)]
            stages.append(x)
            x = [tower.outward[step](y) for tower, y in zip(self.towers, x, strict=True)]
            if step < len(self.exchanges_up):
                x = self.exchanges_up[step](x, present)
        maps = [head(y) for head, y in zip(self.heads, x, strict=True)]
        joined = torch.cat(maps, dim=1)
        logits = self.head(joined)
        if not self.training:
            return Output(logits, embedding=joined)
        supervised = (*self.supervise_maps(maps, joined), *self.supervise(stages, logits))
        # The mean of the last five maps predicts; each of them learns, their mean does not.
        return Output(logits, weight=0.0, auxiliary=supervised, embedding=joined)

    def filled(
        self, features: Features, level: int, blanks: Sequence[Sequence[Tensor] | None]
    ) -> list[Tensor]:
        """Give a level of each tower, that of a zero image where the modality is absent."""
        x, present = features.levels[level], features.present[level]
        return [
            x[:, m]
            if blank is None
            else torch.where(over(present[:, m], x[:, m]), x[:, m], blank[level])
            for m, blank in enumerate(blanks)
        ]

    def supervise(self, stages: Sequence[Sequence[Tensor]], like: Tensor) -> list[Auxiliary]:
        """Predict from the coarse states of each tower with heads that all towers share."""
        found = []
        # Finest first, as everywhere; the numbers are the official ones.
        for stage in reversed(range(len(self.coarse_heads))):
            head, states = self.coarse_heads[stage], stages[stage]
            for name, state in zip(MODALITIES, states, strict=True):
                coarse = head(state)
                logits = F.interpolate(coarse, like.shape[2:], mode="nearest")
                found.append(Auxiliary(f"stage{stage + 1}/{name}", logits, coarse=coarse))
        return found

    def supervise_maps(self, maps: Sequence[Tensor], joined: Tensor) -> list[Auxiliary]:
        """Predict from all towers, and from each."""
        towers = [Auxiliary(f"tower/{m}", x) for m, x in zip(MODALITIES, maps, strict=True)]
        return [Auxiliary("fused", self.head.fuse(joined)), *towers]


class Stem(nn.Module):
    """Make of an image what its tower keeps for the end, and what it exchanges first."""

    def __init__(self, width: int, coarse: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, width, kernel_size=3, padding=1)
        self.block = Residual(width)
        self.down = shrinking(width, coarse)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.block(self.first(x))
        return fine, self.down(fine)


class Tower(nn.Module):
    """Hold the U-Net of one modality after its stem; what happens in between is `MFI.exchange`."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        inner = widths[1:]
        self.inward = Modules(Residual(w) for w in inner)
        self.down = Modules(shrinking(a, b) for a, b in pairwise(inner))
        coarse = list(reversed(inner))
        fine = list(reversed(widths[:-1]))
        self.up = Modules(
            nn.Sequential(nn.Conv3d(a, a, 1), nn.ConvTranspose3d(a, b, kernel_size=2, stride=2))
            for a, b in zip(coarse, fine, strict=True)
        )
        self.outward = Modules(Residual(w) for w in fine)


class Residual(nn.Module):
    """Add to a map what two convolutions make of it, each on normalised and rectified values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [
                nn.GroupNorm(width // GROUP, width),
                nn.ReLU(),
                nn.Conv3d(width, width, kernel_size=3, padding=1),
            ]
        self.added = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        summed: Tensor = x + self.added(x)
        return summed


class Exchange(nn.Module):
    """Add to each tower a mean of all, weighted by what both show and whether the other is real."""

    def __init__(self, width: int, weigher: Weigher) -> None:
        super().__init__()
        self.weigher = weigher
        self.relate = nn.Sequential(
            nn.Linear(4 * width, 2 * width), nn.LeakyReLU(0.01), nn.Linear(2 * width, width)
        )

    def forward(self, towers: Sequence[Tensor], present: Tensor) -> list[Tensor]:
        """Take a map B×C×D×H×W of each tower, and B×M bool."""
        x = torch.stack(list(towers), dim=2)  # B C M D H W
        weights = self.weights(x, present)
        if self.weigher.listener:
            self.weigher.listener(weights.mean(dim=(1, 2)))
        # The map itself is added as one more source, so that one product does both.
        kept = torch.eye(len(towers), device=x.device)
        mixed = (weights + kept).to(x.dtype) @ x.flatten(3)  # B C M V
        return list(mixed.reshape(x.shape).unbind(dim=2))

    def weights(self, x: Tensor, present: Tensor) -> Tensor:
        """Weigh each source for each tower and channel, B×C×tower×source; sources add up to 1."""
        means = full_precision(x).flatten(3).mean(dim=3).mT  # B M C
        batch, count, width = means.shape
        sources = means.unsqueeze(1).expand(-1, count, -1, -1)
        asking = means.unsqueeze(2).expand(-1, -1, count, -1)
        there = present.to(means.dtype).view(batch, 1, count, 1).expand(-1, count, -1, 2 * width)
        related = self.relate(torch.cat([sources, asking, there], dim=3))  # B tower source C
        return full_precision(related).softmax(dim=2).permute(0, 3, 1, 2)


class MeanHead(nn.Conv3d):
    """Average the predictions of the towers and the one that this convolution makes of them."""

    def __init__(self, out_channels: int) -> None:
        super().__init__(len(MODALITIES) * out_channels, out_channels, kernel_size=1)

    def fuse(self, maps: Tensor) -> Tensor:
        """Make one prediction of those of the towers, B×(M C)×D×H×W."""
        return super().forward(maps)

    def forward(self, maps: Tensor) -> Tensor:
        towers = torch.unflatten(maps, 1, (len(MODALITIES), -1)).sum(dim=1)
        return (towers + self.fuse(maps)) / (len(MODALITIES) + 1)


def shrinking(fine: int, coarse: int) -> nn.Conv3d:
    """Halve the resolution."""
    return nn.Conv3d(fine, coarse, kernel_size=3, stride=2, padding=1)
