"""The names of A2FSeg's official weights, for those who have some."""

import re
from collections.abc import Mapping

from torch import Tensor

from bts_lightning.networks.a2fseg import A2FSeg

# Applied in this order; the parts of nnU-Net's `Generic_UNet` first.
OFFICIAL_NAMES = (
    (r"(\.\d+\.\d)\.blocks\.0\.", r"\1."),
    (r"\.blocks\.(\d)\.", r".\1."),
    (r"\bconv\.", "0."),
    (r"\binstnorm\.", "1."),
    (r"conv_blocks_context\.", "contract.stages."),
    (r"conv_blocks_localization\.", "expand.joins."),
    (r"\btu\.", "expand.ups."),
    (r"seg_outputs\.", "expand.heads."),
    (r"^fusion_decoder\.expand\.", "fusion_decoder."),
    (r"^modality_specific_models\.", "unets."),
    (r"^modality_aware_modules\.", "attention."),
    (r"^lastconv\.0\.", "refine."),
    (r"^output\.", "head."),
)


def load_official(net: A2FSeg, state: Mapping[str, Tensor]) -> None:
    """Take the weights of the official network, without the encoder that it never uses."""
    dead = "fusion_decoder.conv_blocks_context."
    live = {name: value for name, value in state.items() if not name.startswith(dead)}
    poolings = len(net.unets[0].contract.stages) - 1
    net.load_state_dict({from_official(name, poolings): live[name] for name in live})


def from_official(name: str, poolings: int) -> str:
    """Translate the name of an official weight; its decoders count from the coarsest step."""

    def from_finest(step: re.Match[str]) -> str:
        return f"{step[1]}.{poolings - 1 - int(step[2])}."

    for pattern, ours in OFFICIAL_NAMES:
        name = re.sub(pattern, ours, name)
    return re.sub(r"\b(ups|joins|heads)\.(\d+)\.", from_finest, name)
