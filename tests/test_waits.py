"""How often a training step would wait for a GPU: values that Python asks of a tensor.

On a CPU nobody waits, but the same operators are called; they are counted for each network. What
CUDA itself counts, `tests/gpu` holds against the same numbers.
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bts_lightning import config
from bts_lightning.data.augment import Augment
from bts_lightning.modalities import tell
from bts_lightning.task import SegmentationTask
from tests.networks.parts import WAITS, batch_for, build, image_for, networks

ROOT = Path(config.__file__).parents[1]
# Copies to the host, which are no operators where tensors are there already.
COPIES = ("cpu", "tolist", "numpy")
ASKS = (
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.repeat_interleave.Tensor,
)
# What stands between a question and who asks it; who asks on a CPU alone.
PASSED = ("networks/convolutions.py:__torch_function__",)
ON_A_CPU = (
    "networks/backbone.py:check",
    "networks/presence.py:rows",
    "networks/presence.py:lacking",
    "distillation/terms.py:similarities",
)
# The quick tests take three that differ much.
QUICK = ("a2fseg_base", "rfnet", "unet")
CASES = [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in networks()]


class Listener(TorchDispatchMode):
    """Note where in the package a value was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def note(self) -> None:
        own = [f for f in traceback.extract_stack() if Path(f.filename).is_relative_to(ROOT)]
        places = [f"{Path(f.filename).relative_to(ROOT)}:{f.name}:{f.lineno}" for f in own]
        place = next((p for p in reversed(places) if not p.startswith(PASSED)), "torch")
        if not place.startswith(ON_A_CPU):
            self.places.append(place)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masks = func is torch.ops.aten.index.Tensor and any(
            x is not None and x.dtype == torch.bool for x in args[1]
        )
        if func in ASKS or masks:
            self.note()
        return func(*args, **kwargs or {})


@contextmanager
def listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    with monkeypatch.context() as patch, Listener() as listener:
        for name in COPIES:
            patch.setattr(Tensor, name, _noting(getattr(Tensor, name), listener))
        yield listener.places


def _noting(method: Callable[..., Any], listener: Listener) -> Callable[..., Any]:
    inside = False

    @wraps(method)
    def noted(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        # Under a mode for functions, torch calls it by its name once more.
        if not inside:
            listener.note()
        before, inside = inside, True
        try:
            return method(self, *args, **kwargs)
        finally:
            inside = before

    return noted


def uploaded(batch: dict[str, Any]) -> dict[str, Any]:
    """Make of it what `to_device` makes for a GPU: other tensors, whose flags the host knows."""
    return batch | {k: tell(batch[k].clone(), batch[k]) for k in ("present", "available")}


@pytest.mark.parametrize("name", CASES)
def test_a_step_asks_for_as_few_values_as_is_known(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = build(networks()[name])
    loss = config.build(config.load([name]).task.loss)
    task = SegmentationTask(net, loss=loss, optimizer=torch.optim.SGD)
    batch = batch_for(image_for(net).shape[-1], [[True, False, True, True], [False, True] * 2])
    task.train()
    with listening(monkeypatch) as places:
        total = torch.stack(list(task._step(uploaded(batch)).values())).sum()
        total.backward()
    assert len(places) == WAITS.get(name, 0), places


def test_augmentation_on_the_device_asks_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    augment = Augment(config.build(config.load(["nnunet"]).data.augment))
    for seed in range(8):
        batch = batch_for(16, [[True] * 4] * 2) | {"seed": [2 * seed, 2 * seed + 1]}
        with listening(monkeypatch) as places:
            augment(batch)
        assert places == []


def test_what_asks_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.arange(4)
    with listening(monkeypatch) as places:
        bool((x > 2).any()), x[x > 2], x.tolist(), x.nonzero(), float(x[0])
    assert len(places) == 5
