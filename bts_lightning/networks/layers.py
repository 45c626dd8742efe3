"""Blocks that A2FSeg and the early-fusion U-Net share, and sums over the present modalities."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from bts_lightning.networks.backbone import Auxiliary, Features


class Block(nn.Sequential):
    """Convolve, normalise each channel of each sample and activate, as nnU-Net does."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__(
            nn.Conv3d(inputs, outputs, kernel_size=3, stride=stride, padding=1),
            nn.InstanceNorm3d(outputs, affine=True),
            nn.LeakyReLU(0.01, inplace=True),
        )


class ContractingPath(nn.Module):
    """Halve the resolution step by step with strided convolutions; levels come finest first."""

    def __init__(self, inputs: int, widths: Sequence[int]) -> None:
        super().__init__()
        first = nn.Sequential(Block(inputs, widths[0]), Block(widths[0], widths[0]))
        deeper = [nn.Sequential(Block(a, b, stride=2), Block(b, b)) for a, b in pairwise(widths)]
        self.stages = nn.ModuleList([first, *deeper])

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        return levels


class ExpandingPath(nn.Module):
    """Double the resolution step by step and join each level; levels come finest first.

    The last of the given levels, the bottleneck, is where it starts and stays as it is. There is a
    head for each step, or for the `heads` finest ones.
    """

    def __init__(
        self, widths: Sequence[int], out_channels: int, *, heads: int | None = None
    ) -> None:
        super().__init__()
        steps = list(pairwise(widths))
        self.ups = nn.ModuleList(
            nn.ConvTranspose3d(coarse, fine, kernel_size=2, stride=2, bias=False)
            for fine, coarse in steps
        )
        self.joins = nn.ModuleList(
            nn.Sequential(Block(2 * fine, fine), Block(fine, fine)) for fine, _ in steps
        )
        self.heads = nn.ModuleList(
            nn.Conv3d(fine, out_channels, kernel_size=1, bias=False) for fine, _ in steps[:heads]
        )

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
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


def mean_of_present(features: Features, level: int) -> Tensor:
    """Average one level over the present modalities of each sample."""
    x, present = features.levels[level], features.present[level]
    keep = present.view(*present.shape, 1, 1, 1, 1)  # B M 1 1 1 1
    # One modality at a time: stacking selected copies of all would double the peak memory.
    total = torch.where(keep[:, 0], x[:, 0], 0)
    for m in range(1, x.shape[1]):
        total = total + torch.where(keep[:, m], x[:, m], 0)
    return total / keep.sum(dim=1)


def full_precision(x: Tensor) -> Tensor:
    """Give half-precision values as single, and others as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rows_with(present: Tensor, *, skip: bool) -> list[Tensor | None]:
    """List for each modality the rows of the batch that have it; None means all.

    The flags are read once, which waits for a GPU; a compiled graph must not depend on them, so
    there every modality counts as needed and what is absent is selected away afterwards.
    """
    if not skip or torch.compiler.is_compiling():
        return [None] * present.shape[1]
    flags = present.cpu()
    return [
        None if flags[:, m].all() else flags[:, m].nonzero().flatten().to(present.device)
        for m in range(flags.shape[1])
    ]


def spread(x: Tensor, rows: Tensor | None, batch: int, value: float = 0.0) -> Tensor:
    """Put the computed rows back into a whole batch, with `value` in all others."""
    return x if rows is None else x.new_full((batch, *x.shape[1:]), value).index_copy(0, rows, x)


def nothing_of(module: nn.Module) -> Tensor:
    """Give a zero that depends on every parameter, so that a skipped module keeps its gradients.

    Data-parallel training waits for a gradient of each parameter in each step.
    """
    return torch.stack([parameter.sum() for parameter in module.parameters()]).sum() * 0
