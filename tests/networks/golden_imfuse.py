"""How the golden files of IM-Fuse map onto ours."""

from typing import Any

from torch import Tensor

from bts_lightning.losses import LabelLoss
from bts_lightning.modalities import MODALITIES, SHOWN_AS
from bts_lightning.networks.attention import to_tokens
from bts_lightning.networks.backbone import Backbone, Features
from bts_lightning.networks.imfuse import FusionBlock, IMFuse
from bts_lightning.networks.mmformer import TOKENS
from tests.networks.conformity import Lesson, Recorded


def build(config: dict[str, Any]) -> IMFuse:
    return IMFuse(
        width=config["base"],
        patch=config["input"][2],
        **{name: config[name] for name in ("interleaved", "mamba_skip", "first_skip")},
    )


def salt(name: str) -> int:
    """Give ten times the number of the modality that owns a parameter."""
    parts = name.split(".")
    owned = parts[0] in {"encoders", "embed", "positions", "within"}
    return 10 * (int(parts[1]) + 1) if owned else 0


def inner(net: Backbone, features: Features, seen: Features) -> dict[str, Tensor]:
    """Give each transformer's tokens, what the blocks write, and what training supervises."""
    assert isinstance(net, IMFuse)
    found = {
        f"intra_{SHOWN_AS[m]}": to_tokens(features.levels[TOKENS][:, i])
        for i, m in enumerate(MODALITIES)
    }
    found["fused_tokens_level5"] = to_tokens(net.mix(seen.selected(TOKENS)))
    for level, mix in enumerate(net.mixes, start=net.first):
        found[f"fused_tokens_level{level + 1}"] = to_tokens(mix(seen.selected(level)))
    # Dropout stays off: only the network itself is told to compute what training needs.
    net.training = True
    output = net.decode(seen)
    net.training = False
    names = [f"sep_prob_{SHOWN_AS[m]}" for m in MODALITIES]
    names += [f"prm_prob_level{level}" for level in range(2, 6)]
    for name, auxiliary in zip(names, output.auxiliary, strict=True):
        found[name] = auxiliary.logits.softmax(dim=1)
    return found | {"x5_inter": net.gathered(seen), "prob": output.logits.softmax(dim=1)}


def losses(lesson: Lesson) -> dict[str, Tensor]:
    output, loss = lesson.output, lesson.loss
    parts = {"ce": LabelLoss(cross_entropy="clamped", dice=0.0), "dice": LabelLoss(ce=0.0)}
    found = {f"fuse_{name}": part(output.logits, lesson.label) for name, part in parts.items()}
    names = [f"sep_{SHOWN_AS[m]}" for m in MODALITIES] + [f"prm_level{n}" for n in range(2, 6)]
    for name, auxiliary in zip(names, output.auxiliary, strict=True):
        found[name] = loss(auxiliary.logits, lesson.label)
    return found | {"total": lesson.total}


def dead(config: dict[str, Any]) -> int:
    """Count what the official class holds and never calls."""
    tokens, deepest = config["input"][2] ** 3 // 16**3, 128
    block = sum(p.numel() for p in FusionBlock(512, tokens, interleaved=True).parameters())
    unused = 4 * (512 * deepest + deepest) if config["first_skip"] else 0
    if not config["mamba_skip"]:
        # Its finer blocks are built as well.
        for level, width in enumerate((8, 16, 32, 64)):
            voxels = (config["input"][2] // 2**level) ** 3
            finer = FusionBlock(width, voxels, interleaved=False)
            unused += sum(p.numel() for p in finer.parameters())
    return block + unused


def table(config: dict[str, Any]) -> str:
    """Name the form."""
    if not config["mamba_skip"]:
        return "imfuse_mfb"
    return "imfuse" if config["first_skip"] else "imfuse_no1skip"


GOLDEN = {
    "IM-Fuse": Recorded(
        build,
        limit=5e-5,
        table=table,
        salt=salt,
        dead=dead,
        auxiliary=inner,
        experiment="imfuse",
        losses=losses,
    )
}
