"""How the golden files of AMoE-BTS map onto ours."""

from typing import Any

from torch import Tensor

from bts_lightning.modalities import MODALITIES, SHOWN_AS
from bts_lightning.networks.amoe_bts import AMoEBTS
from bts_lightning.networks.backbone import Backbone, Features
from tests.networks.conformity import Recorded


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
    if parts[2:3] == ["terms"]:
        return 0  # one convolution officially, which no modality owns
    owner = int(parts[1]) + 1 if parts[0] == "encoders" else 0
    expert = int(parts[parts.index("experts") + 2]) + 1 if "experts" in parts else 0
    return 10 * owner + expert


def inner(net: Backbone, features: Features, seen: Features) -> dict[str, Tensor]:
    """Give the tokens, what the decoder starts from and the deepest features."""
    assert isinstance(net, AMoEBTS)
    gathered = seen.selected(4).flatten(1, 2)
    found = {
        f"encoder_{SHOWN_AS[m]}_level4": features.levels[4][:, i] for i, m in enumerate(MODALITIES)
    }
    if net.gam is not None:
        gathered, _ = net.gam(gathered)
        found["gam_tokens"] = gathered.flatten(2).transpose(1, 2)
    return found | {"bottleneck_to_decoder": net.bottleneck(gathered)}


GOLDEN = {
    "AMoE-BTS": Recorded(
        build=build,
        limit=1e-4,
        salted_limit=1e-3,
        outliers=0.01,
        table=lambda config: f"amoe_bts{'' if config['variant'] == 'official' else '_intended'}",
        salt=salt,
        # What is built anyway, without effect, in the official code: two unused convolutions, and
        # in the released variant the global module with its projection and positions.
        dead=lambda config: 12_416 + (26_772_486 if config["variant"] == "official" else 0),
        auxiliary=inner,
    )
}
