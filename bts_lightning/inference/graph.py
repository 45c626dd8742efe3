"""One window of a network for one subset as an ONNX graph, and its comparison with the network."""

import logging
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bts_lightning.errors import UserError
from bts_lightning.inference.norms import spell_norms_out
from bts_lightning.inference.protocol import Protocol
from bts_lightning.losses import SegmentationLoss
from bts_lightning.modalities import MODALITIES, Subset
from bts_lightning.networks.backbone import Backbone

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram

# Between a probability of the network and the same of its graph.
TOLERANCE = 1e-4
# Two batches: one that was not recorded shows that its size is free.
RECORDED, ANOTHER = 2, 1
_OPERATOR = re.compile(r"\b(?:aten|prims|torchvision|higher_order)(?:\.|::)\w+")


class Window(nn.Module):
    """What an evaluation computes of one window: its images in, what is averaged out.

    The images, B×D×H×W each, are those of the subset in order; no other has a part in the graph.
    """

    def __init__(
        self, net: Backbone, loss: SegmentationLoss, subset: Subset, protocol: Protocol
    ) -> None:
        super().__init__()
        self.net, self.loss, self.subset = net, loss, subset
        self.temperature, self.of_logits = protocol.divisor, protocol.average == "logits"

    @property
    def inputs(self) -> list[str]:
        """Name the images."""
        return [name for name, here in zip(MODALITIES, self.subset, strict=True) if here]

    @property
    def output(self) -> str:
        """Name what is averaged."""
        return "logits" if self.of_logits else "probabilities"

    def forward(self, *images: Tensor) -> Tensor:
        """Give logits or probabilities, B×C×D×H×W."""
        given = iter(images)
        nothing = torch.zeros_like(images[0])
        image = torch.stack([next(given) if here else nothing for here in self.subset], dim=1)
        present = torch.tensor(self.subset, device=image.device).expand(image.shape[0], -1)
        logits = self.net(image, present).logits / self.temperature
        return logits.float() if self.of_logits else self.loss.probabilities(logits)

    def example(self, batch: int, size: tuple[int, int, int]) -> tuple[Tensor, ...]:
        """Draw images of noise."""
        draw = torch.Generator().manual_seed(batch)
        return tuple(torch.randn(batch, *size, generator=draw) for _ in self.inputs)


@dataclass(frozen=True)
class Agreement:
    """How far a graph is from its network, and what a window takes in each.

    Attributes:
        worst: largest difference of a probability.
        seconds: of a window in the graph.
        torch_seconds: of the same in the network.
    """

    worst: float
    seconds: float
    torch_seconds: float


def record(window: Window, size: tuple[int, int, int]) -> "ONNXProgram":
    """Record a window of this size; its batch stays free.

    Raises:
        UserError: when an operator has no counterpart in ONNX; the text names it.
    """
    if window.net.frame and not all(window.subset):
        raise UserError(
            f"{type(window.net).__name__} has no ONNX graph for this subset: it must be told where "
            "a window lies, and a graph takes images alone"
        )
    try:
        with window.net.recording(window.subset), torch.no_grad(), _silence():
            program = torch.onnx.export(
                _traced(window, size),
                dynamo=True,
                input_names=window.inputs,
                output_names=[window.output],
                dynamic_shapes=(tuple({0: "batch"} for _ in window.inputs),),
                custom_translation_table=window.net.translations(),
                verbose=False,
            )
    except Exception as error:
        # The exporter has a class of its own for each of its steps, and tells all in the text.
        raise UserError(
            f"{type(window.net).__name__} has no ONNX graph: {obstacle(error)} stands in the way"
        ) from error
    assert program is not None
    spell_norms_out(program)
    return program


def compare(window: Window, graph: bytes, size: tuple[int, int, int]) -> Agreement:
    """Run the graph with onnxruntime beside the network, on a CPU.

    Raises:
        UserError: when they differ by more than the tolerance.
    """
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors: it warns of what its own optimiser leaves over
    session = InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch in (RECORDED, ANOTHER):
        images = window.example(batch, size)
        began = time.perf_counter()
        with window.net.evaluating(), torch.inference_mode():
            wanted = window(*images)
        between = time.perf_counter()
        given = {name: x.numpy() for name, x in zip(window.inputs, images, strict=True)}
        (found,) = session.run([window.output], given)
        ended = time.perf_counter()
        difference = _probabilities(window, torch.from_numpy(found)) - _probabilities(
            window, wanted
        )
        worst = max(worst, float(np.abs(difference).max()))
    if not worst <= TOLERANCE:  # NaN is no agreement either
        raise UserError(
            f"the graph of {type(window.net).__name__} differs from the network by {worst:.1e} in "
            f"a probability; {TOLERANCE:g} is allowed, so nothing was written"
        )
    return Agreement(worst, ended - between, between - began)


def obstacle(error: BaseException) -> str:
    """Name the operator that stops an export, or what the exporter says where it names none."""
    first: BaseException | None = error
    while error.__cause__ is not None:
        error = error.__cause__
    named = _OPERATOR.search(str(error)) or _OPERATOR.search(str(first))
    lines = [line for line in str(error).splitlines() if line.strip()]
    return named[0] if named else " ".join(lines[:1]) or type(error).__name__


def _traced(window: Window, size: tuple[int, int, int]) -> torch.export.ExportedProgram:
    example = window.example(RECORDED, size)
    free = (tuple({0: torch.export.Dim.DYNAMIC} for _ in example),)
    try:
        return torch.export.export(window, example, dynamic_shapes=free, strict=False)
    except (RuntimeError, ValueError):
        # A network that asks for `len(x)`; this way is slower, and reads that as well.
        return torch.export.export(window, example, dynamic_shapes=free, strict=True)


def _probabilities(window: Window, output: Tensor) -> NDArray[np.float32]:
    read: NDArray[np.float32] = (
        window.loss.probabilities(output) if window.of_logits else output
    ).numpy()
    return read


@contextmanager
def _silence() -> Iterator[None]:
    """Keep what the exporter tells of its own parts from the user."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
