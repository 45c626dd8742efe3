"""What a network makes of a batch, as far as distillation compares it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bts_lightning.errors import ConfigError
from bts_lightning.networks.backbone import Backbone, Features, Output


@dataclass(frozen=True)
class Answer:
    """Hold the logits, the features that the head made them of, and the features of modalities.

    Attributes:
        logits: B×C×D×H×W.
        embedding: B×E×d×h×w, None where no term asked for it.
        features: what the network decoded, each level with its own `present`.
        net: the network that answered.
    """

    logits: Tensor
    embedding: Tensor | None
    features: Features
    net: Backbone


class HeadWatch:
    """Catch what the head of a network reads, without the network knowing.

    In evaluation a network computes nothing but its final logits, so the last of its modules that
    has weights and runs is the head. One sample is enough to find it.
    """

    def __init__(self, net: Backbone) -> None:
        self.net = net
        self._is_placed = self._is_watching = False
        self._caught: list[tuple[Tensor, Tensor]] = []

    def watch(self, image: Tensor, present: Tensor) -> None:
        """Watch until `take`; the first sample of the first batch shows where the head is."""
        if not self._is_placed:
            _head(self.net, image[:1], present[:1]).register_forward_hook(self._catch)
            self._is_placed = True
        self._is_watching = True

    def take(self, output: Output) -> Tensor:
        """Give what the head read when it made these logits."""
        self._is_watching = False
        caught, self._caught[:] = list(self._caught), []
        # A head that also serves auxiliary predictions runs several times.
        own = [read for read, made in caught if made is output.logits] or [r for r, _ in caught]
        if not own:
            raise ConfigError(
                f"{type(self.net).__name__} does not run its head in training as in evaluation, so "
                "its last features cannot be compared; switch off the terms that read them"
            )
        return own[-1]

    def _catch(self, _: nn.Module, read: tuple[Tensor, ...], made: Tensor) -> None:
        # Validation runs the head a thousand times, and nobody would take what it read.
        if self._is_watching:
            self._caught.append((read[0], made))


def _head(net: Backbone, image: Tensor, present: Tensor) -> nn.Module:
    ran: list[nn.Module] = []
    own = [m for m in net.modules() if next(m.parameters(recurse=False), None) is not None]
    hooks = [m.register_forward_hook(lambda module, *_: ran.append(module)) for m in own]
    with _evaluating(net), torch.no_grad():
        # Past `__call__`, which may be compiled for batches of another size.
        net.forward(image, present)
    for hook in hooks:
        hook.remove()
    if not ran:
        raise ConfigError(f"{type(net).__name__} has no module with weights that could be its head")
    return ran[-1]


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    training = [module for module in net.modules() if module.training]
    net.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
