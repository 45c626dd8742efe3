"""How the golden files of RFNet map onto ours."""

from torch import Tensor

from bts_lightning.modalities import MODALITIES, SHOWN_AS
from bts_lightning.networks.backbone import Backbone, Features
from bts_lightning.networks.rfnet import RFNet
from tests.networks.conformity import Recorded


def owner(name: str) -> int:
    """Give ten times the number of the modality that owns a parameter."""
    parts = name.split(".")
    return 10 * (int(parts[1]) + 1) if parts[0] == "encoders" else 0


def salt(name: str) -> int:
    parts = name.split(".")
    return int(parts[3]) + 1 if "weigh" in parts else owner(name)


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
        table="rfnet",
        auxiliary=inner,
    )
}
