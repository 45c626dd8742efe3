"""How the golden files of AMoE-BTS map onto ours."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bts_lightning.modalities import MODALITIES, SHOWN_AS
from bts_lightning.networks.amoe_bts import AMoEBTS
from bts_lightning.networks.backbone import Backbone, Features
from tests.golden.fill_rule import kind_of
from tests.networks.conformity import Recorded

# Block i of ours is block TO_OURS[i] of the official order FLAIR, T1, T1c, T2.
TO_OURS = [1, 2, 3, 0]

Fill = Callable[[tuple[int, ...], str, int], Tensor]


def build(config: dict[str, Any]) -> AMoEBTS:
    variant = "official" if config["variant"] == "official" else "intended"
    return AMoEBTS(
        width=config["widths"][0],
        experts=config["experts"],
        top_k=config["top_k"],
        gam=variant,
        expert_weighting="sum",
        expert_memory="plain",
    )


def salt(name: str) -> int:
    """Combine the modality that owns a parameter with the expert that it is."""
    parts = name.split(".")
    owner = int(parts[1]) + 1 if parts[0] == "encoders" else 0
    expert = int(parts[parts.index("experts") + 2]) + 1 if "experts" in parts else 0
    return 10 * owner + expert


def to_ours(value: Tensor, axis: int) -> Tensor:
    """Reorder the blocks that belong to modalities along an axis."""
    blocks = value.chunk(4, dim=axis)
    return torch.cat([blocks[i] for i in TO_OURS], dim=axis)


@torch.no_grad()
def fill(net: Backbone, filled: Fill, salted: bool) -> None:
    """Fill; the first convolution of a skip is cut into the terms of the modalities.

    The head stays as it is, so the logits compared are TC, WT, ET as in the file; what a channel
    means is the loss's affair, not the network's.
    """
    assert isinstance(net, AMoEBTS)
    for name, parameter in net.named_parameters():
        parts = name.split(".")
        shape = tuple(parameter.shape)
        if parts[2:3] == ["terms"]:
            whole = filled((shape[0], 4 * shape[1], *shape[2:]), "matrix", 0)
            parameter.copy_(whole.chunk(4, dim=1)[TO_OURS[int(parts[1])]])
            continue
        value = filled(shape, kind_of(name, shape), salt(name) if salted else 0)
        read_modalities = ["gam.project.weight"] if net.gam else ["bottleneck.0.weight"]
        if name in read_modalities:
            value = to_ours(value, 1)
        parameter.copy_(value)


def inner(net: Backbone, features: Features, seen: Features) -> dict[str, Tensor]:
    """Give the tokens, what the decoder starts from and the deepest features."""
    assert isinstance(net, AMoEBTS)
    gathered = seen.selected(4).flatten(1, 2)
    found = {
        f"encoder_{SHOWN_AS[m]}_level4": features.levels[4][:, i] for i, m in enumerate(MODALITIES)
    }
    if net.gam is not None:
        gathered = net.gam(gathered)
        found["gam_tokens"] = gathered.flatten(2).transpose(1, 2)
    return found | {"bottleneck_to_decoder": net.bottleneck(gathered)}


GOLDEN = {
    "AMoE-BTS": Recorded(
        build=build,
        limit=1e-4,
        salted_limit=1e-3,
        outliers=0.01,
        fill=fill,
        # What is built anyway, without effect, in the official code: two unused convolutions, and
        # in the released variant the global module with its projection and positions.
        dead=lambda config: 12_416 + (26_772_486 if config["variant"] == "official" else 0),
        auxiliary=inner,
    )
}
