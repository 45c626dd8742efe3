"""Convolutions in double precision that fit into a workstation's memory."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# Of the matrix of neighbourhoods that torch lays out for one convolution in double precision. For
# 16 channels at 128³ it takes 7 GB a sample, and lays it out for all samples of a batch at once.
MOST_BYTES = 2**29


class LeanDouble(TorchFunctionMode):
    """Convolve large volumes in double precision slab by slab; the sums are the same."""

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return (_convolve if func is torch.conv3d else func)(*args, **kwargs or {})


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    plane = x[0, :, 0].numel() * weight[0, 0].numel() * x.element_size()
    if x.dtype != torch.float64 or len(x) * plane * x.shape[2] <= MOST_BYTES:
        return torch.conv3d(x, weight, bias, stride, padding, dilation, groups)
    stride, padding, dilation = (
        [steps] * 3 if isinstance(steps, int) else list(steps)
        for steps in (stride, padding, dilation)
    )
    x = F.pad(x, (0, 0, 0, 0, padding[0], padding[0]))
    reach = dilation[0] * (weight.shape[2] - 1) + 1
    depth = (x.shape[2] - reach) // stride[0] + 1
    step = max(1, MOST_BYTES // plane)
    beside = [0, *padding[1:]]
    samples = []
    for one in x.split(1):
        slabs = [
            torch.conv3d(
                one[:, :, first * stride[0] : (last - 1) * stride[0] + reach],
                *(weight, bias, stride, beside, dilation, groups),
            )
            for first, last in pairwise([*range(0, depth, step), depth])
        ]
        samples.append(torch.cat(slabs, dim=2))
    return torch.cat(samples)
