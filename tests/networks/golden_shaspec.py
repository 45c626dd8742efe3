"""How the golden file of ShaSpec maps onto ours; its logits are ET, WT, TC, as the head is."""

from typing import Any

import torch
from torch import Tensor

from bts_lightning.modalities import MODALITIES
from bts_lightning.networks.backbone import Backbone, Features, over
from bts_lightning.networks.official.table import read_table
from bts_lightning.networks.shaspec import SHARED, STAND_INS, ShaSpec
from tests.golden.fill_rule import make_input
from tests.networks.conformity import Recorded, to_ours

# The global branch of each of five encoders: a convolution and a norm.
DEAD = 5 * (256 * 256 + 2 * 256)
OFFICIAL = [MODALITIES.index(name) for name in STAND_INS]


def build(config: dict[str, Any]) -> ShaSpec:
    return ShaSpec(out_channels=config["classes"])


def salt(name: str) -> int:
    """Give ten times the number of the modality that owns a parameter."""
    parts = name.split(".")
    return 10 * (int(parts[1]) + 1) if parts[0] == "specific" else 0


@torch.no_grad()
def inner(net: Backbone, features: Features, seen: Features) -> dict[str, Tensor]:
    """Give the shared features, and how the specific ones tell the modalities; zeros included."""
    assert isinstance(net, ShaSpec)
    zeros, present = net.zeros(seen), seen.present[SHARED]
    shared = features.levels[SHARED]
    shared = torch.where(over(present, shared), shared, net.shared(zeros)[SHARED].unsqueeze(1))
    image = to_ours(torch.from_numpy(make_input(zeros.shape[2])), read_table("shaspec")).to(zeros)
    net.training = True  # or nothing is described
    learning = net.encode(image, torch.ones_like(present)).restrict(present)
    told = net.classify(net.described(learning))[0]
    net.training = False
    return {"shared_ft": shared[0, OFFICIAL], "spec_domain_logits": told[OFFICIAL][:, OFFICIAL]}


GOLDEN = {
    "ShaSpec": Recorded(
        build,
        # The file lies 1.2e-4 from double precision, the features of zero images 6e-3.
        limit=3e-4,
        auxiliary_limit=6e-3,
        salt=salt,
        table="shaspec",
        dead=lambda config: DEAD,
        auxiliary=inner,
    )
}
