"""How the official A2FSeg networks are rebuilt."""

import re
from typing import Any

from torch import Tensor

from bts_lightning.modalities import MODALITIES, SHOWN_AS
from bts_lightning.networks.a2fseg.network import A2FSeg
from bts_lightning.networks.backbone import Backbone, Features
from bts_lightning.networks.layers import ContractingPath, halving_widths
from tests.networks.conformity import Recorded


def build(config: dict[str, Any]) -> A2FSeg:
    return A2FSeg(
        variant=config["variant"],
        width=config["base"],
        poolings=config["pools"],
        width_limit=config["max_features"],
    )


def salt(name: str) -> int:
    owner = re.match(r"(?:unets|attention)\.(\d)\.", name)
    return 10 * (int(owner[1]) + 1) if owner else 0


def unused_encoder(config: dict[str, Any]) -> int:
    """Count the weights of the encoder that the official fusion decoder owns and never calls."""
    if config["variant"] not in ("official", "decoder"):
        return 0
    widths = halving_widths(config["base"], config["pools"], config["max_features"])
    return sum(p.numel() for p in ContractingPath(1, widths).parameters())


def auxiliary(net: Backbone, features: Features, seen: Features) -> dict[str, Tensor]:
    output = net.train().decode(seen)
    net.eval()
    names = {f"modality/{m}": f"branch_{SHOWN_AS[m]}" for m in MODALITIES}
    names["average"] = "fusion_decoder"
    found: dict[str, Tensor] = {}
    for extra in output.auxiliary:
        if extra.valid is None or bool(extra.valid):
            level = sum(key.startswith(names[extra.name] + ".") for key in found)
            found[f"{names[extra.name]}.level{level}"] = extra.logits
    return found


GOLDEN = {
    "A2FSeg": Recorded(
        build, limit=1e-5, table="a2fseg", salt=salt, dead=unused_encoder, auxiliary=auxiliary
    )
}
