"""How the golden file of M2FTrans maps onto ours."""

from typing import Any

from torch import Tensor

from bts_lightning.modalities import MODALITIES, SHOWN_AS
from bts_lightning.networks.backbone import Backbone, Features
from bts_lightning.networks.m2ftrans import M2FTrans
from tests.networks.conformity import Recorded


def build(config: dict[str, Any]) -> M2FTrans:
    return M2FTrans(width=config["base"], patch=config["input"][2], depth=config["depth"])


def salt(name: str) -> int:
    """Give ten times the number of the modality that owns a parameter."""
    parts = name.split(".")
    place = {"encoders": 1, "attentive": 4}.get(parts[0])
    owned = place == 1 or (place == 4 and parts[3] in {"keys", "values"})
    return 10 * (int(parts[place]) + 1) if place and owned else 0


def inner(net: Backbone, features: Features, seen: Features) -> dict[str, Tensor]:
    """Give the last tokens, what attention over channels gives, and the probabilities."""
    assert isinstance(net, M2FTrans)
    gathered: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: gathered.append(output))
        for module in net.attentive
    ]
    net.training = True  # of the network alone: dropout stays off
    output = net.decode(seen)
    net.training = False
    for hook in hooks:
        hook.remove()
    found = dict(zip(("ct5", "ct4"), gathered, strict=True))
    found["tokens_fusion"] = net.fuse(seen)[0].flatten(2).mT
    for m, name in enumerate(MODALITIES):
        found[f"tokens_{SHOWN_AS[name]}"] = features.levels[-1][:, m].flatten(2).mT
    for level, deep in enumerate(output.auxiliary[4:], start=1):
        found[f"prm_prob_level{level}"] = deep.logits.softmax(dim=1)
    return found | {"prob": output.logits.softmax(dim=1)}


GOLDEN = {"M2FTrans v2": Recorded(build, limit=2e-5, table="m2ftrans", salt=salt, auxiliary=inner)}
