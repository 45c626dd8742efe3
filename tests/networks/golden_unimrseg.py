"""How the golden files of UniMRSeg map onto ours."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bts_lightning.networks.backbone import Backbone, Features
from bts_lightning.networks.convolutions import OneDNN
from bts_lightning.networks.likeness import agreement, distance
from bts_lightning.networks.pyramid import to_maps
from bts_lightning.networks.unimrseg import UniMRSeg
from tests.golden.fill_rule import make_input
from tests.networks.conformity import Lesson, Recorded, unowned


class Told(UniMRSeg):
    """Tell what the decoder has read."""

    read: Sequence[Tensor] = ()
    _complete: tuple[list[Tensor], Tensor] | None = None

    def joined(self, levels: Sequence[Tensor]) -> Tensor:
        self.read = list(levels)
        return super().joined(levels)

    def consistency(self, *given: Any) -> dict[str, Tensor]:
        """Leave that to `losses`, which asks it of the mask of a file alone."""
        return {}

    def of_complete(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """Give levels and logits of the complete image, once for all masks of a file."""
        if self._complete is None:
            with OneDNN():  # as in a training pass, so that rounding is the same
                levels = self.complete(image)
                self._complete = levels, self.head(super().joined(levels))
        return self._complete


def build(config: dict[str, Any]) -> Told:
    return Told(out_channels=config["classes"])


def inner(net: Backbone, features: Features, seen: Features) -> dict[str, Tensor]:
    assert isinstance(net, Told)
    return {f"x{level}": x[0] for level, x in enumerate(net.read, start=1)}


def losses(lesson: Lesson) -> dict[str, Tensor]:
    net, features = lesson.net, lesson.output.features
    assert isinstance(net, Told)
    assert features is not None
    x = features.levels[0]  # without what the mask takes
    with torch.no_grad():
        levels, logits = net.of_complete(torch.from_numpy(make_input(x.shape[-1])).to(x))
    far = [distance(x, y)[0] for x, y in zip(net.read, levels, strict=True)]
    maps = 1 - agreement(to_maps(lesson.output.logits), to_maps(logits))[0]
    by_label = lesson.loss(lesson.output.logits, lesson.label)
    unlabelled = maps + net.level_weight * torch.stack(far).sum()
    found = {f"l1_x{level}": x for level, x in enumerate(far, start=1)}
    found |= {"dice_label": by_label, "dice_complete": maps}
    return found | {"stage3": by_label if features.present[0].all() else unlabelled}


GOLDEN = {
    "UniMRSeg (stage 3)": Recorded(
        build,
        limit=1e-5,
        table="unimrseg",
        salt=unowned,
        auxiliary=inner,
        experiment="unimrseg",
        losses=losses,
    )
}
