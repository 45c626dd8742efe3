"""How the U-HVED of the IM-Fuse benchmark is rebuilt."""

import re
from typing import Any

import torch
from torch import Tensor

from bts_lightning.modalities import MODALITIES, SHOWN_AS
from bts_lightning.networks.backbone import Backbone, Features
from bts_lightning.networks.uhved import UHVED, experts, posterior
from tests.networks.conformity import Recorded


def build(config: dict[str, Any]) -> UHVED:
    return UHVED(width=config["base"], out_channels=config["classes"])


def salt(name: str) -> int:
    owner = re.match(r"(?:encoders|reconstructions)\.(\d)\.", name)
    return 10 * (int(owner[1]) + 1) if owner else 0


@torch.no_grad()
def auxiliary(net: Backbone, features: Features, seen: Features) -> dict[str, Tensor]:
    assert isinstance(net, UHVED)
    means = []
    for x, present in zip(seen.levels, seen.present, strict=True):
        means.append(posterior(*experts(x, present), present)[0])
    found = {f"posterior_mean_level{level + 1}": mean for level, mean in enumerate(means)}
    for name, decoder in zip(MODALITIES, net.reconstructions, strict=True):
        found[f"recon_{SHOWN_AS[name]}"] = decoder(means).logits
    return found


GOLDEN = {
    "U-HVED (IM-Fuse PyTorch port)": Recorded(
        build, limit=1e-5, table="uhved", salt=salt, auxiliary=auxiliary
    )
}
