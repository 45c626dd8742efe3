"""Networks on a card: the numbers of a CPU in each precision, and the laws."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from bts_lightning import config
from bts_lightning.data.patches import to_device
from bts_lightning.inference import Protocol, segment
from bts_lightning.losses import LabelLoss
from bts_lightning.modalities import SUBSETS
from bts_lightning.networks.backbone import Backbone
from bts_lightning.networks.hemis import UHeMIS
from bts_lightning.task import SegmentationTask
from tests.networks.parts import WAITS, batch_for, build, image_for, networks

CPU = torch.device("cpu")
ALL = (True, True, True, True)
# All that a compiler must see through, in few minutes.
COMPILED = ("a2fseg_base", "rfnet", "unet")


@dataclass(frozen=True)
class Mode:
    """How a step is computed, and how near it must come to single precision on a CPU.

    Attributes:
        loss: relative error of the loss.
        cosine: of all gradients as one vector.
    """

    dtype: torch.dtype | None = None
    last: bool = False
    compiled: bool = False
    loss: float = 1e-4
    cosine: float = 0.999


MODES = {
    "fp32": Mode(),
    "channels last": Mode(last=True),
    "bf16": Mode(torch.bfloat16, loss=0.05, cosine=0.9),
    "fp16": Mode(torch.float16, loss=0.05, cosine=0.9),
    "compiled": Mode(compiled=True),
}


def small(name: str) -> Backbone:
    """Build the small form of an experiment's network, without dropout."""
    net = build(networks()[name])
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return net


def task_of(name: str, mode: Mode, device: torch.device) -> SegmentationTask:
    loss = config.build(config.load([name]).task.loss)
    net = small(name)
    task = SegmentationTask(net, loss=loss, optimizer=torch.optim.SGD, channels_last=mode.last)
    task.setup("predict")
    if mode.compiled:
        # The card's own compiler; of the twin's, what does not take minutes.
        net.compile(backend="inductor" if device.type == "cuda" else "aot_eager")
    return task.to(device).train()


def step(name: str, mode: Mode, device: torch.device) -> tuple[float, Tensor]:
    """Give loss and gradient of one step."""
    task = task_of(name, mode, device)
    batch = batch_for(image_for(task.net).shape[-1], [[True, False, True, True], [False, True] * 2])
    batch = to_device(batch, device)
    torch.manual_seed(3)
    with torch.autocast(device.type, mode.dtype, enabled=mode.dtype is not None):
        total = torch.stack(list(task._step(batch).values())).sum()
    # As a scaler does, or half precision would lose small gradients.
    scale = 1024.0 if mode.dtype == torch.float16 else 1.0
    (scale * total).backward()
    grads = [p.grad.flatten().double().cpu() for p in task.parameters() if p.grad is not None]
    return float(total.detach()), torch.cat(grads) / scale


@cache
def on_a_cpu(name: str) -> tuple[float, Tensor]:
    return step(name, MODES["fp32"], CPU)


@pytest.mark.usefixtures("one_chance")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", networks())
def test_a_step_gives_what_a_cpu_gives(name: str, mode: str, card: torch.device) -> None:
    if mode == "compiled" and name not in COMPILED:
        pytest.skip("a few that differ much stand for all")
    expected, direction = on_a_cpu(name)
    loss, gradient = step(name, MODES[mode], card)
    assert loss == pytest.approx(expected, rel=MODES[mode].loss)
    assert gradient.isfinite().all()
    cosine = float(gradient @ direction / (gradient.norm() * direction.norm()))
    assert cosine >= MODES[mode].cosine


@pytest.fixture(params=networks())
def net(request: pytest.FixtureRequest, card: torch.device) -> Backbone:
    return small(request.param).to(card).eval()


@torch.no_grad()
def test_laws_hold(net: Backbone, card: torch.device) -> None:
    """The five laws of the contract, each on one example."""
    image = image_for(net, batch=2).to(card)
    present = torch.tensor([[True, False, True, True], [False, True, False, True]], device=card)
    there = present.view(2, 4, 1, 1, 1)
    clean = net(torch.where(there, image, 0.0), present).logits
    # 1: nothing of what is absent gets through. 4: the same again, bit for bit.
    for value in (float("nan"), 1e30):
        assert torch.equal(net(torch.where(there, image, value), present).logits, clean)
    # 2: what is there gets through.
    for m in (0, 2, 3):
        other = image.clone()
        other[0, m] = other[0, m].flip(-1) + 1
        assert not torch.equal(net(other, present).logits[0], clean[0]), m
    # 3: a sample does not depend on its neighbour.
    for row in range(2):
        alone = net(image[row : row + 1], present[row : row + 1]).logits
        torch.testing.assert_close(alone, clean[row : row + 1], rtol=2e-3, atol=2e-3)
    # 5: encoded once, each subset is as if it were alone.
    features = net.encode(image, torch.ones_like(present))
    for subset in SUBSETS:
        some = torch.tensor([subset, subset], device=card)
        once = net.decode(features.restrict(some)).logits
        torch.testing.assert_close(once, net(image, some).logits, rtol=2e-3, atol=2e-3)


def test_one_pass_gives_the_naive_label_maps(card: torch.device) -> None:
    torch.manual_seed(0)
    net, image = UHeMIS(width=4).to(card), np.random.default_rng(0).standard_normal((4, 24, 20, 16))
    protocol = {"window": 16, "overlap": 0.5}
    once = segment(net, LabelLoss(), image, ALL, Protocol(**protocol), device=card)
    naive = segment(net, LabelLoss(), image, ALL, Protocol(**protocol, naive=True), device=card)
    assert len(np.unique(once)) > 1
    assert (once != naive).mean() <= (1e-4 if card.type == "cuda" else 0)
    spoilt = image.copy()
    spoilt[2] = np.nan
    seen = (True, True, False, True)
    clean, dirty = (
        segment(net, LabelLoss(), x, seen, Protocol(**protocol), device=card)
        for x in (image, spoilt)
    )
    np.testing.assert_array_equal(clean, dirty)


def test_little_memory_decodes_fewer_subsets_at_once(card: torch.device) -> None:
    if card.type != "cuda":
        pytest.skip("a processor has no limit of its own; `test_inference.py` lets a network fail")
    torch.manual_seed(0)
    net, image = UHeMIS(width=16).to(card), np.random.default_rng(0).standard_normal((4, *[96] * 3))

    def run() -> np.ndarray:
        return segment(net, LabelLoss(), image, ALL, Protocol(window=96), device=card)

    expected = run()
    needed = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    try:
        share = 0.6 * needed / torch.cuda.get_device_properties(card).total_memory
        torch.cuda.set_per_process_memory_fraction(share)
        again = run()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert (again != expected).mean() < 1e-4


@pytest.mark.parametrize("name", networks())
def test_a_step_waits_as_rarely_as_is_known(name: str, card: torch.device) -> None:
    if card.type != "cuda":
        pytest.skip("CUDA alone counts; `test_waits.py` counts what Python asks for on a processor")
    task = task_of(name, MODES["fp32"], card)
    batch = batch_for(image_for(task.net).shape[-1], [[True, False, True, True], [False, True] * 2])
    batch = to_device(batch, card)
    learn: Callable[[], None] = lambda: (  # noqa: E731
        torch.stack(list(task._step(batch).values())).sum().backward()  # type: ignore[no-untyped-call]
    )
    learn()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            learn()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(one.message) for one in said if "synchroniz" in str(one.message)]
    assert len(waits) <= WAITS.get(name, 0), waits
