"""Blocks of nnU-Net, shared by A2FSeg and the early-fusion U-Net."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from bts_lightning.errors import ConfigError
from bts_lightning.networks.backbone import Auxiliary
from bts_lightning.networks.modules import Modules


class Block(nn.Sequential):
    """Convolve, normalise each channel of each sample and activate, as nnU-Net does."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__(
            nn.Conv3d(inputs, outputs, kernel_size=3, stride=stride, padding=1),
            nn.InstanceNorm3d(outputs, affine=True),
            nn.LeakyReLU(0.01, inplace=True),
        )


class ContractingPath(nn.Module):
    """Halve the resolution step by step with strided convolutions; levels come finest first.

    The finest is that of the image, or coarser by a `stride`.
    """

    def __init__(self, inputs: int, widths: Sequence[int], *, stride: int = 1) -> None:
        super().__init__()
        first = nn.Sequential(Block(inputs, widths[0], stride=stride), Block(widths[0], widths[0]))
        deeper = [nn.Sequential(Block(a, b, stride=2), Block(b, b)) for a, b in pairwise(widths)]
        self.stages = nn.ModuleList([first, *deeper])

    def forward(self, x: Tensor) -> list[Tensor]:
        """Give what each stage makes of the one before."""
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        return levels


class ExpandingPath(nn.Module):
    """Double the resolution step by step and join each level; levels come finest first.

    The last of the given levels, the bottleneck, is where it starts and stays as it is. There is a
    head for each step, or for the `heads` finest ones. `second` makes another second block.
    """

    def __init__(
        self,
        widths: Sequence[int],
        out_channels: int,
        *,
        heads: int | None = None,
        second: Callable[[int], nn.Module] = lambda width: Block(width, width),
    ) -> None:
        super().__init__()
        steps = list(pairwise(widths))
        self.ups = nn.ModuleList(
            nn.ConvTranspose3d(coarse, fine, kernel_size=2, stride=2, bias=False)
            for fine, coarse in steps
        )
        self.joins = Modules(
            nn.Sequential(Block(2 * fine, fine), second(fine)) for fine, _ in steps
        )
        self.heads = nn.ModuleList(
            nn.Conv3d(fine, out_channels, kernel_size=1, bias=False) for fine, _ in steps[:heads]
        )

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Join the levels to what comes up from below."""
        decoded = [levels[-1]]
        for step in reversed(range(len(self.ups))):
            up = self.ups[step](decoded[0])
            decoded.insert(0, self.joins[step](torch.cat([up, levels[step]], dim=1)))
        return decoded

    def supervise(
        self,
        decoded: Sequence[Tensor],
        name: str,
        *,
        valid: Tensor | None = None,
        first: int = 0,
    ) -> tuple[Auxiliary, ...]:
        """Predict from each decoded level, from `first` on, with the weights of nnU-Net."""
        weights = deep_weights(len(self.heads))
        return tuple(
            Auxiliary(name, self.heads[step](decoded[step]), weights[step], valid)
            for step in range(first, len(self.heads))
        )


def halving_widths(width: int, poolings: int, limit: int) -> list[int]:
    """Double the width with each halving of the resolution, up to a limit."""
    if limit < width:
        raise ConfigError(f"width_limit is {limit}, less than the width of {width} it limits")
    return [min(width * 2**level, limit) for level in range(poolings + 1)]


def deep_weights(heads: int) -> list[float]:
    """Weigh heads from fine to coarse 1, 1/2, 1/4, …, the coarsest 0, adding up to 1 (nnU-Net)."""
    raw = [2.0**-level for level in range(max(1, heads - 1))] + [0.0] * (heads > 1)
    return [weight / sum(raw) for weight in raw]


def initialise(net: nn.Module) -> None:
    """Draw convolutions Kaiming normal for the slope 0.01, with zero bias, as nnU-Net does."""
    for module in net.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(module.weight, a=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
