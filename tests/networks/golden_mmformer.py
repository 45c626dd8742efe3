"""How the golden file of mmFormer maps onto ours."""

from torch import Tensor

from bts_lightning.modalities import MODALITIES, SHOWN_AS
from bts_lightning.networks.backbone import Backbone, Features
from bts_lightning.networks.mmformer import TOKENS, MMFormer
from tests.networks.conformity import Recorded


def salt(name: str) -> int:
    """Give ten times the number of the modality that owns a parameter."""
    parts = name.split(".")
    owned = parts[0] in {"encoders", "embed", "positions", "within"}
    return 10 * (int(parts[1]) + 1) if owned else 0


def inner(net: Backbone, features: Features, seen: Features) -> dict[str, Tensor]:
    """Give the tokens after the last transformer and the probabilities that training supervises."""
    assert isinstance(net, MMFormer)
    found = {"x5_inter": net.attend_across(seen.selected(TOKENS))}
    # Dropout stays off: only the network itself is told to compute what training needs.
    net.training = True
    output = net.decode(seen)
    net.training = False
    names = [f"sep_prob_{SHOWN_AS[m]}" for m in MODALITIES]
    names += [f"aux_prob_level{level}" for level in range(1, 5)]
    for name, auxiliary in zip(names, output.auxiliary, strict=True):
        found[name] = auxiliary.logits.softmax(dim=1)
    return found | {"prob": output.logits.softmax(dim=1)}


GOLDEN = {
    "mmFormer": Recorded(
        build=lambda config: MMFormer(width=config["base"], legacy_token_layout=True),
        limit=1e-5,
        salt=salt,
        table="mmformer",
        dead=lambda config: 4 * (128 * 512 + 128),
        auxiliary=inner,
    )
}
