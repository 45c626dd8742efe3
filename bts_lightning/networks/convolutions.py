"""Fast convolutions of single windows on a CPU."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

Steps = int | Sequence[int]


class OneDNN(TorchFunctionMode):
    """Convolve one small sample with oneDNN, as torch does by itself with two, or a large one.

    What torch does with one, up to 20480 values of channels × depth × height, takes three to eight
    times as long. Kernels of one voxel are matrix products and stay as they are.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Take the place of `torch.conv3d`, and of nothing else."""
        return (_convolve if func is torch.conv3d else func)(*args, **kwargs or {})


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Steps = 1,
    padding: Steps | str = 0,
    dilation: Steps = 1,
    groups: int = 1,
) -> Tensor:
    if isinstance(padding, str) or not _is_slow(x, weight):
        return torch.conv3d(x, weight, bias, stride, padding, dilation, groups)
    steps = (_triple(padding), _triple(stride), _triple(dilation))
    convolved: Tensor = torch.ops.aten.mkldnn_convolution(x, weight, bias, *steps, groups)
    return convolved


def _is_slow(x: Tensor, weight: Tensor) -> bool:
    return (
        len(x) == 1
        and weight.shape[-1] > 1
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and torch._C._get_mkldnn_enabled()
    )


def _triple(steps: Steps) -> list[int]:
    return [steps] * 3 if isinstance(steps, int) else list(steps)
