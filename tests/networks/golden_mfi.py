"""How the golden files of U-Net-MFI map onto ours."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bts_lightning.modalities import MODALITIES, SHOWN_AS
from bts_lightning.networks.backbone import Backbone, Features
from bts_lightning.networks.mfi import MFI
from tests.networks.conformity import Lesson, Recorded

# Three of four perceptrons of each exchange, at a width of 32.
DEAD = 3_200_640


def build(config: dict[str, Any]) -> MFI:
    return MFI(width=config["base"], out_channels=config["classes"])


def salt(name: str) -> int:
    """Give ten times the number of the modality that owns a parameter."""
    parts = name.split(".")
    return 10 * (int(parts[1]) + 1) if parts[0] in {"stems", "towers", "heads"} else 0


@torch.no_grad()
def inner(net: Backbone, features: Features, seen: Features) -> dict[str, Tensor]:
    """Give what the exchanges make of each tower, and what training supervises."""
    assert isinstance(net, MFI)
    found: dict[str, Tensor] = {}

    def keep(number: int, module: nn.Module, inputs: Any, mixed: list[Tensor]) -> None:
        for name, x in zip(MODALITIES, mixed, strict=True):
            found[f"mfi{number}_{SHOWN_AS[name]}"] = x

    exchanges = [*net.exchanges_down, *net.exchanges_up]
    hooks = [
        exchange.register_forward_hook(partial(keep, number))
        for number, exchange in enumerate(exchanges, start=1)
    ]
    output = net.train().decode(seen)
    net.eval()
    for hook in hooks:
        hook.remove()
    return found | {recorded(head.name): head.logits for head in output.auxiliary}


def losses(lesson: Lesson) -> dict[str, Tensor]:
    heads = lesson.output.auxiliary
    found = {recorded(head.name): lesson.loss(head.logits, lesson.label) for head in heads}
    return found | {"total": lesson.total}


def recorded(name: str) -> str:
    """Give the name of a prediction in the file: `stage1_T1c`, `out_FLAIR`, `fused`."""
    kind, _, modality = name.partition("/")
    kind = "out" if kind == "tower" else kind
    return f"{kind}_{SHOWN_AS[modality]}" if modality else kind  # type: ignore[index]


GOLDEN = {
    "U-Net-MFI": Recorded(
        build,
        limit=1e-5,
        salt=salt,
        table="mfi",
        dead=lambda config: DEAD,
        auxiliary=inner,
        experiment="mfi",
        losses=losses,
    )
}
