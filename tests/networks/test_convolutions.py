"""Convolutions of single samples on a CPU: what torch computes, by the kernels of oneDNN."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from bts_lightning.networks.convolutions import OneDNN
from bts_lightning.networks.unet import UNet
from tests.inference.parts import ALL, make


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": 1},
        {"bias": None, "stride": 2, "padding": (1, 0, 1)},
        {"dilation": 2, "padding": "same"},
        {"groups": 2},
    ],
)
@torch.inference_mode()
def test_single_windows_are_convolved_as_torch_does(options: dict[str, Any]) -> None:
    x, weight, bias = torch.randn(1, 4, 9, 8, 7), torch.randn(6, 4, 3, 3, 3), torch.randn(6)
    groups = options.get("groups", 1)
    weight = weight[:, : 4 // groups]
    options = {"bias": bias} | options
    expected = F.conv3d(x, weight, **options)
    with OneDNN():
        torch.testing.assert_close(F.conv3d(x, weight, **options), expected, rtol=1e-5, atol=1e-5)
        assert F.conv3d(x.double(), weight.double(), groups=groups).dtype == torch.float64
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert F.conv3d(x, weight, **options).dtype == torch.bfloat16


@torch.inference_mode()
def test_single_small_windows_meet_the_fast_kernels() -> None:
    net = make()
    with OneDNN(), profile(activities=[ProfilerActivity.CPU]) as watched:
        net.encode(torch.randn(1, 4, 8, 8, 8), torch.tensor([ALL]))
    called = {event.key for event in watched.key_averages()}
    assert "aten::mkldnn_convolution" in called
    assert "aten::slow_conv3d" not in called


@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1},
        {"padding": 0},
        {"padding": (1, 0, 1), "stride": 2, "bias": None},
        {"padding": (2, 1, 0), "dilation": (2, 1, 1)},
        {"padding": 1, "groups": 2},
        {"padding": 3},
        {"padding": 1, "stride": (3, 1, 2)},
    ],
)
@pytest.mark.parametrize("depth", [3, 4, 9, 12])
def test_a_single_sample_learns_what_torch_lets_it_learn(
    options: dict[str, Any], depth: int
) -> None:
    weight = torch.randn(6, 4 // options.get("groups", 1), 3, 3, 3)
    given = {"bias": torch.randn(6)} | options
    if depth + 2 * (given["padding"] if isinstance(given["padding"], int) else 0) < 5:
        given["dilation"] = 1
    check(F.conv3d, torch.randn(1, 4, depth, 8, 7), weight, given)


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2},
        {"stride": (1, 2, 2), "kernel": (1, 2, 2)},
        {"stride": 2, "kernel": (3, 3, 3), "padding": 1, "output_padding": 1},
        {"stride": 2, "groups": 2},
    ],
)
@pytest.mark.parametrize("depth", [1, 3, 4])
def test_a_single_sample_is_enlarged_as_torch_does(options: dict[str, Any], depth: int) -> None:
    given = {"bias": torch.randn(6)} | options
    kernel = given.pop("kernel", (2, 2, 2))
    weight = torch.randn(4, 6 // given.get("groups", 1), *kernel)
    check(F.conv_transpose3d, torch.randn(1, 4, depth, 5, 6), weight, given)


def check(func: Any, x: torch.Tensor, weight: torch.Tensor, options: dict[str, Any]) -> None:
    """Compare values and gradients, of samples with channels first and last."""
    found = []
    for form in (torch.contiguous_format, torch.channels_last_3d):
        for mode in (False, True):
            leaves = [t.detach().clone().requires_grad_() for t in (x, weight)]
            with OneDNN() if mode else torch.enable_grad():
                y = func(leaves[0].contiguous(memory_format=form), leaves[1], **options)
            y.backward(torch.linspace(-1, 1, y.numel()).view(y.shape))
            found.append([y.detach(), *(leaf.grad for leaf in leaves)])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-4)


def test_a_training_step_on_one_sample_meets_the_fast_kernels() -> None:
    net = UNet(width=4, poolings=2).train()
    image, present = torch.randn(1, 4, 16, 16, 16), torch.tensor([ALL])
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as watched:
        net(image, present).logits.square().sum().backward()
    # Kernels of one voxel are matrix products there, and stay as they are.
    slow = [e for e in watched.events() if e.name.startswith("aten::slow_conv3d")]
    assert all(event.input_shapes[1][-1] == 1 for event in slow)
    assert any(event.name == "aten::mkldnn_convolution" for event in watched.events())
