"""How the golden files of DeMoSeg map onto ours."""

from typing import Any

from torch import Tensor

from bts_lightning.modalities import MODALITIES, SHOWN_AS
from bts_lightning.networks.backbone import Backbone, Features
from bts_lightning.networks.demoseg import DeMoSeg
from tests.networks.conformity import Lesson, Recorded


def build(config: dict[str, Any]) -> DeMoSeg:
    return DeMoSeg(
        width=config["base"], poolings=config["poolings"], width_limit=config["cap"], kl_weight=0.5
    )


def salt(name: str) -> int:
    parts = name.split(".")
    return 10 * (int(parts[1]) + 1) if parts[0] in {"stems", "sort_stems"} else 0


def inner(net: Backbone, features: Features, seen: Features) -> dict[str, Tensor]:
    """Give the stems of what is present, what is routed, and the predictions in training."""
    assert isinstance(net, DeMoSeg)
    found = {"routed": net.route(seen)}
    for m, name in enumerate(MODALITIES):
        if seen.present[0][0, m]:  # officially the stem of an absent one sees zeros
            found[f"stem_{SHOWN_AS[name]}"] = features.levels[0][:, m]
    return found


def losses(lesson: Lesson) -> dict[str, Tensor]:
    output, loss = lesson.output, lesson.loss
    found = {"kl": output.penalties["kl"]}
    for level, logits in enumerate([output.logits, *(deep.logits for deep in output.auxiliary)]):
        found[f"dicece_level{level + 1}"] = loss(logits, lesson.label)
    return found | {"total": lesson.total}


GOLDEN = {
    "DeMoSeg": Recorded(
        build,
        limit=1e-5,
        table="demoseg",
        salt=salt,
        auxiliary=inner,
        experiment="demoseg",
        losses=losses,
    )
}
