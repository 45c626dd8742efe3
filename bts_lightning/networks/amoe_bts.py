"""AMoE-BTS: four encoders of mixtures of experts, and a transformer of experts between them."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bts_lightning.errors import ConfigError
from bts_lightning.modalities import MODALITIES
from bts_lightning.networks.backbone import Backbone, Features, Output, Weigher, over
from bts_lightning.networks.experts import (
    GAM_DROPOUT,
    ExpertMemory,
    Experts,
    GlobalModule,
    GlobalPool,
    Mixer,
    Neighbours,
)
from bts_lightning.networks.modules import Modules
from bts_lightning.networks.presence import encode_each

DEEPEST = 4
LAYERS = 2  # mixing layers a level


class AMoEBTS(Backbone):
    """Route every voxel to experts within its modality, and every token across modalities.

    AMoE-BTS, 2024, built on NestedFormer (Xing et al., MICCAI 2022). Official code at 9165eca
    (Apache-2.0; nothing was copied).

    Extension: the published network always sees four modalities. Here the features of an absent
    modality are zero after its encoder, and training drops modalities.

    Deviations:
        `gam="intended"`: the bottleneck receives what the global module (GAM) made. In the
        official code the next line overwrites it, so GAM does nothing and learns nothing: that is
        `official`, built without the 26,784,902 parameters that have no effect. `residual` adds
        the convolved features to it, as NestedFormer does.
        `expert_weighting="softmax"`: the experts chosen for a token are weighted by their share;
        officially weights that add up to 1 multiply the plain sum, which is `sum`.
        The position table is interpolated, so that every multiple of 16 voxels works.
        `mixer="avgpool"`: as the code; `globalpool` is the paper's figure, read as NestedFormer has
        it: the mean of each channel times a table plus a table, made for `patch` and stretched over
        other sizes. The map that says where to look (CBAM) acts where the code has it.
        `load_balance`: off as released. Above 0 it is the factor of a loss against experts that
        nobody asks, see `experts.imbalance`; the mean over modalities, levels, layers and GAM.
        A skip's first convolution over the concatenated modalities is a sum over modalities; each
        term is computed once in `encode`, which changes no number.

    Args:
        width: channels of the stem; the levels have 1, 2, 4 and 8 times as many.
        hidden: hidden channels of an expert of the encoders.
        mixer: how an encoder looks at other voxels, see above.
        load_balance: see above; 0.01 is usual.
        renormalise: let the gates of the chosen experts of an encoder add up to 1.
        patch: edge of the cube of voxels that the position table is made for.
        expert_memory: what the encoders' experts keep for the backward pass, see `Experts`.

    Example:
        >>> net = AMoEBTS(**AMoEBTS.small()).eval()
        >>> present = torch.tensor([[True, False, True, True]])
        >>> net(torch.randn(1, 4, 32, 32, 32), present).logits.shape
        torch.Size([1, 3, 32, 32, 32])
    """

    divisor = 16
    least_width = 2
    fused_levels = tuple(range(DEEPEST + 1))

    def __init__(
        self,
        *,
        width: int = 16,
        experts: int = 6,
        top_k: int = 3,
        hidden: int = 256,
        mixer: Literal["avgpool", "globalpool"] = "avgpool",
        load_balance: float = 0.0,
        renormalise: bool = False,
        gam: Literal["intended", "residual", "official"] = "intended",
        gam_hidden: int = 4096,
        heads: int = 8,
        expert_weighting: Literal["softmax", "sum"] = "softmax",
        expert_memory: ExpertMemory = "checkpoint",
        patch: int = 128,
        out_channels: int = 3,
    ) -> None:
        super().__init__(
            out_channels, width=width, hidden=hidden, gam_hidden=gam_hidden, heads=heads
        )
        if not 1 <= top_k <= experts:
            raise ConfigError(f"top_k is {top_k}; with {experts} experts it is 1 to {experts}")
        if patch < self.divisor or patch % self.divisor:
            raise ConfigError(f"patch is {patch}; AMoEBTS needs a multiple of {self.divisor}")
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        gathered = len(MODALITIES) * widths[DEEPEST]
        if gathered % heads:
            raise ConfigError(f"heads is {heads}; it must divide {gathered}, the width of a token")

        def mixing(modality: int, channels: int) -> Mixer:
            level = widths.index(channels, 1)
            pools = mixer == "globalpool"
            return Mixer(
                channels,
                Experts(experts, channels, hidden, dropout=0.0, memory=expert_memory),
                gate=nn.Linear(channels, experts),
                top_k=top_k,
                renormalise=renormalise,
                around=GlobalPool(patch // 2**level) if pools else Neighbours(),
                weigher=Weigher("gates", level, modality),
            )

        self.load_balance = load_balance
        self.encoders = Modules(
            ModalityEncoder(widths, partial(mixing, m)) for m in range(len(MODALITIES))
        )
        self.skips = nn.ModuleList(Skip(w) for w in widths[:DEEPEST])
        self.gam: GlobalModule | None = None
        if gam != "official":
            self.gam = GlobalModule(
                gathered,
                Experts(experts, gathered, gam_hidden, dropout=GAM_DROPOUT, memory="plain"),
                gate=nn.Linear(gathered, experts),
                top_k=top_k,
                plain_sum=expert_weighting == "sum",
                heads=heads,
                grid=patch // self.divisor,
                weigher=Weigher("global gates", DEEPEST),
            )
        self.bottleneck = double(gathered, widths[DEEPEST])
        self.beside_gam = double(gathered, widths[DEEPEST]) if gam == "residual" else None
        self.up = nn.ModuleList(nn.ConvTranspose3d(b, b // 2, 2, stride=2) for b in widths[1:])
        self.join = nn.ModuleList(double(skip + deep // 2, skip) for skip, deep in pairwise(widths))
        self.head = nn.Conv3d(width, out_channels, 1)

    @classmethod
    def small(cls) -> dict[str, Any]:
        """Give arguments of the same wiring that run in a blink."""
        return {
            "width": 4,
            "experts": 4,
            "top_k": 2,
            "hidden": 8,
            "gam_hidden": 16,
            "heads": 2,
            "patch": 32,
        }

    def encode_levels(self, image: Tensor, present: Tensor) -> tuple[Tensor, ...]:
        """Give five levels; in training with a load-balancing loss also that, B×M×1×1×1×1."""
        levels = encode_each(self.encoders, image)
        return levels if self.training and self.load_balance else levels[: DEEPEST + 1]

    def weighers(self) -> tuple[Weigher, ...]:
        """Tell the gates of all experts, those of GAM for all modalities together."""
        layers = (m for m in self.modules() if isinstance(m, Mixer | GlobalModule))
        return tuple(layer.weigher for layer in layers)

    def decode(self, features: Features) -> Output:
        gathered = features.selected(DEEPEST).flatten(1, 2)  # B (M C) D H W
        mixed, uneven = (gathered, None) if self.gam is None else self.gam(gathered)
        x = self.bottleneck(mixed)
        if self.beside_gam is not None:
            x = x + self.beside_gam(gathered)
        for level in reversed(range(DEEPEST)):
            skip = self.skips[level](_sum_of_present(features, level))
            x = self.join[level](torch.cat([skip, self.up[level](x)], dim=1))
        penalties: dict[str, Tensor] = {}
        if self.training and self.load_balance:
            penalties["balance"] = self.load_balance * self._imbalance(features, uneven)
        return Output(self.head(x), penalties=penalties, embedding=x)

    def _imbalance(self, features: Features, of_gam: Tensor | None) -> Tensor:
        """Average over the modalities that were encoded, then, with GAM, over all layers."""
        each, real = features.levels[DEEPEST + 1].flatten(1), features.real
        mean = torch.where(real, each, 0).sum(dim=1) / real.sum(dim=1)  # B
        if of_gam is not None:
            layers = LAYERS * DEEPEST
            mean = (layers * mean + of_gam) / (layers + 1)
        return mean.mean()


class ModalityEncoder(nn.Module):
    """Encode one modality into its terms of the four skips, and the deepest features themselves.

    Last comes how unevenly its experts were asked.
    """

    def __init__(self, widths: Sequence[int], mixer: Callable[[int], nn.Module]) -> None:
        super().__init__()
        stem = nn.Sequential(*unit(1, widths[0]), *unit(widths[0], widths[0]))
        levels = [Level(a, b, [mixer(b) for _ in range(LAYERS)]) for a, b in pairwise(widths)]
        self.stages = nn.ModuleList([stem, *levels])
        self.terms = nn.ModuleList([*(term(w) for w in widths[:-1]), nn.Identity()])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        stem, *levels = self.stages
        x = stem(x)
        found, uneven = [self.terms[0](x)], []
        for level, to_skip in zip(levels, self.terms[1:], strict=True):
            x, each = level(x)
            uneven.append(each)
            found.append(to_skip(x))
        return *found, torch.stack(uneven).mean(dim=0).view(-1, 1, 1, 1, 1)


class Level(nn.Module):
    """Halve the resolution, find where to look, and mix: voxels stay channels-last in between."""

    def __init__(self, inputs: int, width: int, mixers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.embed = nn.Conv3d(inputs, width, 2, stride=2)
        self.norm = nn.LayerNorm(width)
        self.look = SpatialMap(width)
        self.mixers = nn.ModuleList(mixers)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give B×C×D×H×W, and how unevenly the experts were asked, B."""
        x = self.norm(self.embed(x).movedim(1, -1))  # B D H W C
        where = self.look(x.movedim(-1, 1)).movedim(1, -1)  # B D H W 1
        uneven = []
        for mixer in self.mixers:
            x, each = mixer(x, where)
            uneven.append(each)
        return x.movedim(-1, 1), torch.stack(uneven).mean(dim=0)


class SpatialMap(nn.Module):
    """Say for each voxel how much it matters (the spatial half of CBAM, Woo et al. 2018)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        squeezed = max(1, width // 16)
        self.squeeze = nn.Sequential(
            nn.Linear(width, squeezed, bias=False),
            nn.ReLU(),
            nn.Linear(squeezed, width, bias=False),
        )
        self.look = nn.Conv3d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        space = (2, 3, 4)
        channels = self.squeeze(x.mean(dim=space)) + self.squeeze(x.amax(dim=space))
        x = x * channels.sigmoid()[:, :, None, None, None]
        summary = torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)
        where: Tensor = self.look(summary).sigmoid()
        return where


class Skip(nn.Module):
    """Finish the two units over a level's concatenated modalities from the terms of the first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        bound = (len(MODALITIES) * width * 27) ** -0.5  # PyTorch's for the whole convolution
        self.bias = nn.Parameter(torch.empty(width).uniform_(-bound, bound))
        self.rest = nn.Sequential(*unit(width, width)[1:], *unit(width, width))

    def forward(self, total: Tensor) -> Tensor:
        finished: Tensor = self.rest(total + self.bias[:, None, None, None])
        return finished


def term(width: int) -> nn.Conv3d:
    """Make the part of a convolution over all modalities, concatenated, that reads one of them."""
    convolution = nn.Conv3d(width, width, 3, padding=1, bias=False)
    with torch.no_grad():
        convolution.weight /= len(MODALITIES) ** 0.5  # drawn as if it read all of them
    return convolution


def _sum_of_present(features: Features, level: int) -> Tensor:
    """Add up a level over present modalities, one at a time: a copy of all would be large."""
    x, present = features.levels[level], features.present[level]
    total = torch.zeros_like(x[:, 0])
    for m in range(x.shape[1]):
        total = total + torch.where(over(present[:, m], total), x[:, m], 0)
    return total


def unit(inputs: int, outputs: int) -> list[nn.Module]:
    """Convolve, normalise, activate."""
    return [nn.Conv3d(inputs, outputs, 3, padding=1), nn.InstanceNorm3d(outputs), nn.ReLU()]


def double(inputs: int, outputs: int) -> nn.Sequential:
    """Chain two units."""
    return nn.Sequential(*unit(inputs, outputs), *unit(outputs, outputs))
