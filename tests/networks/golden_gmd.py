"""How the golden file of GMD maps onto ours; its losses are those of single subsets."""

from typing import Any

import torch
from torch import Tensor

from bts_lightning.modalities import MODALITIES, SHOWN_AS
from bts_lightning.networks.backbone import Backbone, Features
from bts_lightning.networks.gmd import GMD
from tests.golden.fill_rule import make_input
from tests.networks.conformity import Lesson, Recorded

DEEPEST = 9  # the number of the last norm on the way down


def build(config: dict[str, Any]) -> GMD:
    return GMD(width=int(32 * config["width_ratio"]), out_channels=config["classes"])


def salt(name: str) -> int:
    parts = name.split(".")
    return 10 * (int(parts[1]) + 1) if parts[0] == "norms" else 0


def inner(net: Backbone, features: Features, seen: Features) -> dict[str, Tensor]:
    """Give the prediction and the deepest features of each modality."""
    assert isinstance(net, GMD)
    maps = net.maps(features)[0]
    x = features.levels[0]
    image = torch.from_numpy(make_input(x.shape[-1])).to(x)
    found = {}
    for m, modality in enumerate(MODALITIES):
        deepest: list[Tensor] = []
        norm = net.norms[m][DEEPEST]
        with norm.register_forward_hook(
            lambda _, inputs, output, kept=deepest: kept.append(output)
        ):
            net.unet(image[:, m : m + 1], net.norms[m])
        found[f"logits_{SHOWN_AS[modality]}"] = maps[m]
        found[f"bottleneck_{SHOWN_AS[modality]}"] = deepest[0].relu()
    return found


def losses(lesson: Lesson) -> dict[str, Tensor]:
    return {"dice": lesson.loss(lesson.output.logits, lesson.label)}


GOLDEN = {
    "GMD (Ensemble, dynamic sharing)": Recorded(
        build, limit=1e-5, table="gmd", salt=salt, auxiliary=inner, experiment="gmd", losses=losses
    )
}
