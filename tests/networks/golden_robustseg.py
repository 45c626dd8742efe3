"""How RobustSeg of the IM-Fuse benchmark is rebuilt."""

from typing import Any

import torch
from torch import Tensor

from bts_lightning.modalities import MODALITIES, SHOWN_AS
from bts_lightning.networks.backbone import Backbone, Features
from bts_lightning.networks.robustseg import RobustSeg
from tests.golden.fill_rule import make_input
from tests.networks.conformity import Recorded


def build(config: dict[str, Any]) -> RobustSeg:
    # The recorded count is that of the published patch; a segmentation takes any size.
    return RobustSeg(width=config["base"], patch=80, out_channels=config["classes"])


def salt(name: str) -> int:
    """Give ten times the number of the modality that owns a parameter."""
    parts = name.split(".")
    owned = parts[0] in {"encoders", "styles", "painters"}
    return 10 * (int(parts[1]) + 1) if owned else 0


@torch.no_grad()
def inner(net: Backbone, features: Features, seen: Features) -> dict[str, Tensor]:
    """Give the styles of the complete image, and what gates and fusions make of a subset."""
    assert isinstance(net, RobustSeg)
    image = torch.from_numpy(make_input(features.levels[0].shape[-1])).to(features.levels[0].dtype)
    found = {
        f"se_{SHOWN_AS[name].lower()}": style(image[:, m : m + 1])
        for m, (name, style) in enumerate(zip(MODALITIES, net.styles, strict=True))
    }
    for level in (0, 3):
        fusion, selected = net.fusions[level], seen.selected(level)
        # Recorded in the official order of modalities.
        found[f"att_c{level + 1}"] = fusion.gate(selected.flatten(1, 2))[:, [3, 1, 0, 2]]
        found[f"fusion_c{level + 1}"] = fusion(selected)
    return found | {"prob": net.decode(seen).logits.softmax(dim=1)}


GOLDEN = {
    "RobustSeg (IM-Fuse PyTorch port)": Recorded(
        build, limit=2e-5, table="robustseg", salt=salt, auxiliary=inner
    )
}
