"""Encoder and decoder of ShaSpec: residual, with kernels that are standardised at every call."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bts_lightning.networks.modules import Modules

# A bottleneck ends this many times as wide as it is inside.
WIDENING = 4


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
