"""Normal noise that depends on seed and place alone: the same on every device, in any order."""

from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bts_lightning.compiled import compiled

Keys = tuple[int, int]
# Quantiles. The sum of two is as good as normal, and reaches to five deviations.
_BITS = 12
_quantiles = [NormalDist().inv_cdf((i + 0.5) / 2**_BITS) for i in range(2**_BITS)]
_NORMAL = np.array(_quantiles / np.sqrt(2 * np.var(_quantiles)), np.float32)
# A hash of 32 bits that leaves no pattern (lowbias32, by Chris Wellons): a counter becomes chance.
_SHIFTS, _FACTORS = (16, 15, 16), (0x7FEB352D, 0x846CA68B)
_S0, _S1, _S2 = (np.uint32(shift) for shift in _SHIFTS)
_F0, _F1 = (np.uint32(factor) for factor in _FACTORS)
_HIGH, _LOW, _MASK = np.uint32(32 - _BITS), np.uint32(32 - 2 * _BITS), np.uint32(2**_BITS - 1)


def noise_like(x: Tensor, keys: Keys) -> Tensor:
    """Draw standard normal noise on the tensor's device."""
    drawn = torch.arange(x.numel(), dtype=torch.int32, device=x.device)
    for key in keys:
        drawn = drawn ^ _signed(key)
        for shift, factor in zip(_SHIFTS, (*_FACTORS, None), strict=True):
            drawn = drawn ^ _shifted(drawn, shift)
            drawn = drawn if factor is None else drawn * _signed(factor)
    table = torch.from_numpy(_NORMAL).to(x.device, non_blocking=True)
    one, other = _shifted(drawn, int(_HIGH)), _shifted(drawn, int(_LOW)) & int(_MASK)
    return (table[one] + table[other]).view(x.shape)


def _shifted(bits: Tensor, by: int) -> Tensor:
    # Torch shifts the sign in.
    return (bits >> by) & ((1 << (32 - by)) - 1)


def _signed(bits: int) -> int:
    return bits - (1 << 32) if bits >> 31 else bits


@compiled
def add_noise(image: NDArray[Any], std: float, keys: Keys, least: float) -> None:
    """Add the same noise, times its deviation, and the least number, to what is not zero."""
    flat = image.reshape(-1)
    scale, tiny = np.float32(std), np.float32(least)
    first, second = np.uint32(keys[0]), np.uint32(keys[1])
    for i in range(flat.size):
        drawn = _hashed(np.uint32(_hashed(np.uint32(np.uint32(i) ^ first)) ^ second))
        one, other = drawn >> _HIGH, (drawn >> _LOW) & _MASK
        value = flat[i] + scale * (_NORMAL[one] + _NORMAL[other]) + tiny
        flat[i] = value if flat[i] != 0 else np.float32(0)


@compiled
def _hashed(bits: Any) -> Any:
    bits = np.uint32(bits ^ (bits >> _S0))
    bits = np.uint32(bits * _F0)
    bits = np.uint32(bits ^ (bits >> _S1))
    bits = np.uint32(bits * _F1)
    return np.uint32(bits ^ (bits >> _S2))
