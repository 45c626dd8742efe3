"""How the golden files of RFNet map onto ours."""

import numpy as np
from torch import Tensor

from bts_lightning.modalities import MODALITIES, SHOWN_AS
from bts_lightning.networks.backbone import Backbone, Features
from bts_lightning.networks.rfnet import RFNet
from tests.networks.conformity import Array, Recorded

# Block i of ours is block TO_OURS[i] of the official order FLAIR, T1c, T1, T2.
TO_OURS = [2, 1, 3, 0]


def owner(name: str) -> int:
    """Give ten times the number of the modality that owns a parameter."""
    parts = name.split(".")
    return 10 * (int(parts[1]) + 1) if parts[0] == "encoders" else 0


def blocks_to_ours(value: Array, axis: int, modalities: int) -> Array:
    """Reorder the blocks that belong to modalities along an axis."""
    blocks = np.split(value, modalities, axis=axis)
    return np.concatenate([blocks[i] for i in TO_OURS], axis=axis)


def salt(name: str) -> int:
    parts = name.split(".")
    return int(parts[3]) + 1 if "weigh" in parts else owner(name)


def arrange(name: str, value: Array) -> Array:
    """Reorder what reads or gives one block or value a modality."""
    if name.endswith(("embed.0.0.weight", "shortcut.0.0.weight")):
        return blocks_to_ours(value, 1, 4)
    parts = name.split(".")
    if "weigh" in parts and parts[-2:] == ["0", "weight"]:
        return np.concatenate([blocks_to_ours(value[:, :-1], 1, 4), value[:, -1:]], axis=1)
    if "weigh" in parts and parts[-2] == "2":
        return blocks_to_ours(value, 0, 4)
    return value


def inner(net: Backbone, features: Features, seen: Features) -> dict[str, Tensor]:
    """Give the probabilities that training supervises."""
    output = net.train().decode(seen)
    net.eval()
    names = [f"sep_prob_{SHOWN_AS[m]}" for m in MODALITIES]
    names += [f"prm_prob_level{level}" for level in range(1, 5)]
    found = {
        name: auxiliary.logits.softmax(dim=1)
        for name, auxiliary in zip(names, output.auxiliary, strict=True)
    }
    return found | {"prob": output.logits.softmax(dim=1)}


GOLDEN = {
    "RFNet": Recorded(
        build=lambda config: RFNet(width=config["base"]),
        limit=3e-5,
        salt=salt,
        arrange=arrange,
        auxiliary=inner,
    )
}
