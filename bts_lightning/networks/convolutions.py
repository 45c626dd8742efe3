"""Fast convolutions of single samples on a CPU."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Steps = int | Sequence[int]


# Torch hands single samples to oneDNN above so many values of channels × depth × height.
LARGE = 20480


class OneDNN(TorchFunctionMode):
    """Convolve one small sample with oneDNN, as torch does by itself with two, or a large one.

    What torch does with one takes three to ten times as long. In training half of all samples lack
    a modality, so the encoder of one often sees a single sample. Kernels of one voxel are matrix
    products and stay as they are.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Take the place of two functions of torch, and of nothing else."""
        return _OURS.get(func, func)(*args, **kwargs or {})


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
    pads, steps, gaps = _triple(padding), _triple(stride), _triple(dilation)
    if torch.is_grad_enabled():
        kernel = gaps[0] * (weight.shape[2] - 1) + 1
        half, odd = divmod((x.shape[2] + 2 * pads[0] - kernel) // steps[0] + 1, 2)
        if odd:
            return torch.conv3d(x, weight, bias, stride, padding, dilation, groups)
        # The backward pass has no such function; but two samples it computes fast as well.
        padded = F.pad(x, (0, 0, 0, 0, pads[0], pads[0]))
        upper_and_lower = padded.unfold(2, (half - 1) * steps[0] + kernel, half * steps[0])
        halves = _like(x, upper_and_lower[0].permute(1, 0, 4, 2, 3))
        return _joined(torch.conv3d(halves, weight, bias, steps, [0, *pads[1:]], gaps, groups))
    convolved: Tensor = torch.ops.aten.mkldnn_convolution(
        x, weight, bias, pads, steps, gaps, groups
    )
    return convolved


def _enlarge(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Steps = 1,
    padding: Steps = 0,
    output_padding: Steps = 0,
    groups: int = 1,
    dilation: Steps = 1,
) -> Tensor:
    is_block = _triple(stride) == list(weight.shape[2:]) and groups == 1
    is_plain = not any(_triple(padding) + _triple(output_padding)) and _triple(dilation) == [1] * 3
    if not (is_block and is_plain and x.shape[2] % 2 == 0 and _is_slow(x, weight)):
        return torch.conv_transpose3d(
            x, weight, bias, stride, padding, output_padding, groups, dilation
        )
    # Every voxel becomes a block of its own, so halves need nothing of each other.
    halves = _like(x, torch.unflatten(x, 2, (2, -1))[0].movedim(1, 0))
    return _joined(torch.conv_transpose3d(halves, weight, bias, stride))


def _is_slow(x: Tensor, weight: Tensor) -> bool:
    return (
        len(x) == 1
        and weight.shape[-1] > 1
        and x.shape[1:4].numel() <= LARGE
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and torch._C._get_mkldnn_enabled()
    )


def _like(x: Tensor, halves: Tensor) -> Tensor:
    """Lay two halves out in memory as the sample is."""
    is_last = x.is_contiguous(memory_format=torch.channels_last_3d)
    return halves.contiguous(
        memory_format=torch.channels_last_3d if is_last else torch.contiguous_format
    )


def _joined(halves: Tensor) -> Tensor:
    return halves.movedim(0, 1).flatten(1, 2).unsqueeze(0)


def _triple(steps: Steps) -> list[int]:
    return [steps] * 3 if isinstance(steps, int) else list(steps)


_OURS: dict[Any, Callable[..., Tensor]] = {
    torch.conv3d: _convolve,
    torch.conv_transpose3d: _enlarge,
}
