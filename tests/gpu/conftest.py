"""What must hold on a GPU. `make test-gpu` runs these tests on the first card.

`BTS_GPU_TWIN=cpu make test-gpu` runs the same on the processor, where they can be written and
mended. `BTS_GPU_DATA=FOLDER` names a prepared data set, for images that cannot make a phantom.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

HERE = Path(__file__).parent
TWIN = os.environ.get("BTS_GPU_TWIN") == "cpu"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests of this folder."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def card() -> torch.device:
    """Give the device of these tests."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    if not TWIN:
        pytest.skip("no GPU here; BTS_GPU_TWIN=cpu runs the same on the processor")
    return torch.device("cpu")


@pytest.fixture
def accelerator(card: torch.device) -> str:
    """Give the words' value for `trainer.accelerator`."""
    return "gpu" if card.type == "cuda" else "cpu"


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    """Compute single precision as such: TF32 has three digits."""
    cudnn = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = cudnn
    torch._dynamo.reset()


@pytest.fixture
def one_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let both devices draw the same numbers, which their generators do not."""

    def rand(*size: Any, device: Any = None, **kinds: Any) -> Tensor:
        return drawn(*size, **kinds).to(device or "cpu")

    def randn_like(x: Tensor, **kinds: Any) -> Tensor:
        return normal(x.shape, dtype=torch.float32).to(x)

    drawn, normal = torch.rand, torch.randn
    monkeypatch.setattr(torch, "rand", rand)
    monkeypatch.setattr(torch, "randn_like", randn_like)
