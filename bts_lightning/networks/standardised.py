"""What ShaSpec and LCKD share: an encoder for all modalities, and a decoder that reads its levels.

Both are residual, with kernels that are standardised at every call.
"""

from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bts_lightning.errors import ConfigError
from bts_lightning.modalities import MODALITIES
from bts_lightning.networks.backbone import Backbone, Features, Output, over
from bts_lightning.networks.modules import Modules
from bts_lightning.networks.presence import is_worth_sharing, lacking

# A bottleneck ends this many times as wide as it is inside.
WIDENING = 4
# Levels of the encoder that the decoder reads beside the deep features.
FINE = 4


class SharedEncoding(Backbone):
    """Encode each modality by one encoder; where one is absent, decode with that of a zero image.

    A subclass says how it encodes, and what goes deep into the decoder (`deep`). It calls
    `add_decoder` when all its other parts are made.

    Args:
        width: channels of the finest level.
        blocks: bottlenecks of each of the four stages of an encoder.
        whole_axis: which axis the first convolution leaves whole while it halves the others.
        out_channels: 3 for regions, 4 for labels.
    """

    divisor = 32
    least_width = 2  # of a kernel of one weight nothing is left

    def __init__(
        self,
        *,
        width: int,
        blocks: Sequence[int],
        whole_axis: Literal["first", "last"],
        out_channels: int,
    ) -> None:
        super().__init__(out_channels, width=width)
        if len(blocks) != FINE or min(blocks) < 1:
            name = type(self).__name__
            raise ConfigError(f"blocks is {list(blocks)}; {name} needs {FINE} numbers from 1 up")
        self.stride = (1, 2, 2) if whole_axis == "first" else (2, 2, 1)
        self.shared = Encoder(width, blocks, self.stride)

    def add_decoder(self, width: int) -> None:
        """Make what comes last, and draw all weights."""
        modalities = len(MODALITIES)
        levels = [width, *(WIDENING * width * 2**level for level in range(FINE - 1))]
        self.decoder = Decoder(
            modalities * WIDENING * width,
            [modalities * w for w in levels],
            [width // 2, width, 2 * width, 4 * width],
        )
        self.head = nn.Conv3d(width // 2, self.out_channels, kernel_size=1, bias=False)
        initialise(self)

    @classmethod
    def small(cls) -> dict[str, Any]:
        """Give arguments of the same wiring that run in a blink."""
        return {"width": 4, "blocks": [1, 2, 1, 1]}

    @property
    def divisors(self) -> tuple[int, int, int]:
        """Halve five times, but four times along the whole axis."""
        d, h, w = (self.divisor * step // 2 for step in self.stride)
        return d, h, w

    def decode(self, features: Features) -> Output:
        return self.fuse(features, self.blank(features))

    def decode_subsets(self, features: Features, subsets: Tensor) -> Tensor:
        """Run the zero image once for all subsets of a case."""
        if not is_worth_sharing(features.levels):
            return super().decode_subsets(features, subsets)
        blank = self.blank(features.restrict(subsets))
        rows = [features.restrict(subsets[row : row + 1]) for row in range(len(subsets))]
        return torch.stack([self.fuse(seen, blank).logits for seen in rows])  # S B C D H W

    def blank(self, features: Features) -> list[Tensor] | None:
        """Encode a zero image, 1×C×D×H×W a level, if some sample lacks a modality.

        What comes out depends on weights and size alone.
        """
        read = features.present if self.training else features.present[:FINE]
        return list(self.shared(self.zeros(features))) if any(lacking(read)) else None

    def zeros(self, features: Features) -> Tensor:
        finest = features.levels[0]
        size = [n * s for n, s in zip(finest.shape[3:], self.stride, strict=True)]
        return finest.new_zeros(1, 1, *size)

    def fuse(self, features: Features, blank: Sequence[Tensor] | None) -> Output:
        """Decode what may be seen."""
        fine = [filled(features, level, blank).flatten(1, 2) for level in range(FINE)]
        x = self.decoder(self.deep(features).flatten(1, 2), fine)
        factor = tuple(float(s) for s in self.stride)
        x = F.interpolate(x, scale_factor=factor, mode="trilinear", align_corners=False)
        return Output(self.head(x), embedding=x)

    @abstractmethod
    def deep(self, features: Features) -> Tensor:
        """Give deep features B×M×C×D×H×W, with something in the place of those that are absent."""


def filled(features: Features, level: int, blank: Sequence[Tensor] | None) -> Tensor:
    """Give a level with the features of a zero image in absent slots."""
    x = features.levels[level]
    if blank is None:
        return x
    return torch.where(over(features.present[level], x), x, blank[level].unsqueeze(1))


class StandardisedConv(nn.Conv3d):
    """Convolve without bias, with a kernel of mean 0 and variance 1 for each output channel."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int | tuple[int, int, int] = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__(
            inputs,
            outputs,
            kernel,
            stride=stride,
            padding=dilation * (kernel // 2),
            dilation=dilation,
            bias=False,
        )

    def kernel(self) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3, 4), keepdim=True)
        return (self.weight - mean) / (variance + 1e-12).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.kernel(), None)


def unit(
    inputs: int,
    outputs: int,
    kernel: int,
    *,
    stride: int | tuple[int, int, int] = 1,
    dilation: int = 1,
) -> nn.Sequential:
    """Convolve, normalise each channel of each sample, and activate."""
    return nn.Sequential(
        StandardisedConv(inputs, outputs, kernel, stride=stride, dilation=dilation),
        norm(outputs),
        nn.LeakyReLU(0.01, inplace=True),
    )


def norm(width: int) -> nn.Module:
    return nn.InstanceNorm3d(width, affine=True)


class Residual(nn.Module):
    """Add to a map, or to what a shortcut makes of it, what a body makes of it; and activate."""

    def __init__(self, body: nn.Sequential, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut or nn.Identity()
        self.activate = nn.LeakyReLU(0.01)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.activate(self.body(x) + self.shortcut(x))
        return added


def bottleneck(inputs: int, planes: int, *, stride: int = 1, widens: bool = False) -> Residual:
    """Narrow, look around, and widen; only the first of a stage changes the width."""
    outputs = WIDENING * planes
    body = nn.Sequential(
        *unit(inputs, planes, 1),
        *unit(planes, planes, 3, stride=stride),
        StandardisedConv(planes, outputs, 1),
        norm(outputs),
    )
    if not widens:
        return Residual(body)
    shortcut = nn.Sequential(StandardisedConv(inputs, outputs, 1, stride=stride), norm(outputs))
    return Residual(body, shortcut)


class Encoder(nn.Module):
    """Encode one modality: four levels for a decoder, deep features, and what describes the whole.

    The levels are 64, 256, 512 and 1024 wide where `width` is 64, the features 256.

    Args:
        width: channels of the finest level.
        blocks: bottlenecks of each of the four stages.
        stride: of the first convolution.
    """

    def __init__(self, width: int, blocks: Sequence[int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        planes = [width, 2 * width, 4 * width, 5 * width]
        widths = [width, *(WIDENING * p for p in planes)]
        self.stem = unit(1, width, 7, stride=stride)
        self.shrink = nn.MaxPool3d(3, stride=2, padding=1)
        self.stages = Modules(
            nn.Sequential(
                bottleneck(inputs, p, stride=1 if level == 0 else 2, widens=True),
                *(bottleneck(WIDENING * p, p) for _ in range(count - 1)),
            )
            for level, (inputs, p, count) in enumerate(
                zip(widths[:-1], planes, blocks, strict=True)
            )
        )
        self.reduce = unit(widths[-1], WIDENING * width, 1)
        self.context = Context(WIDENING * width)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Give the levels, finest first, the features, and the description B×C×1×1×1."""
        *levels, reduced = self.trunk(x)
        return *levels, self.context(reduced), describe(reduced)

    def trunk(self, x: Tensor) -> list[Tensor]:
        """Give the levels, finest first, and what features and description are made of."""
        levels = [self.stem(x)]
        x = self.shrink(levels[0])
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        return [*levels[:-1], self.reduce(levels[-1])]


def describe(reduced: Tensor) -> Tensor:
    """Average over space."""
    return reduced.mean(dim=(2, 3, 4), keepdim=True)


class Context(nn.Module):
    """Look around near and far, and mix what was seen.

    A fifth branch, from the mean over space, is left out: its norm sees one voxel and gives a
    learned constant, which the last norm removes. The kernels that would read it are
    standardised over it too, so their weights stay.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.near = unit(width, width, 1)
        self.far = Modules(unit(width, width, 3, dilation=d) for d in (2, 4, 8))
        self.mix = StandardisedConv(5 * width, width, 1)
        self.finish = nn.Sequential(norm(width), nn.LeakyReLU(0.01, inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        seen = torch.cat([self.near(x), *(branch(x) for branch in self.far)], dim=1)
        mixed: Tensor = self.finish(F.conv3d(seen, self.mix.kernel()[:, : seen.shape[1]]))
        return mixed


class Decoder(nn.Module):
    """Enlarge deep features four times, each time with a level of all modalities added.

    Args:
        inputs: channels of the deep features.
        levels: channels of each level, of all modalities together, finest first.
        widths: channels of the decoder at each level.
    """

    def __init__(self, inputs: int, levels: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        self.enlarge = Modules(
            nn.ConvTranspose3d(coarse, fine, kernel_size=2, stride=2, bias=False)
            for fine, coarse in pairwise([*widths, inputs])
        )
        self.skips = Modules(unit(a, b, 1) for a, b in zip(levels, widths, strict=True))
        self.blocks = Modules(
            Residual(nn.Sequential(*unit(w, w, 3), StandardisedConv(w, w, 3), norm(w)))
            for w in widths
        )

    def forward(self, x: Tensor, levels: Sequence[Tensor]) -> Tensor:
        for level in reversed(range(len(levels))):
            x = self.blocks[level](self.enlarge[level](x) + self.skips[level](levels[level]))
        return x


def initialise(net: nn.Module) -> None:
    """Draw convolutions Kaiming normal by what they give; transposed ones keep torch's default.

    Biases of norms begin near zero, officially at zero. There a zero image would be zero all the
    way, and 50 norms of variance 0 make a gradient of 1e69 through it.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.InstanceNorm3d):
            nn.init.normal_(module.bias, std=0.02)
