"""How the golden files of MIFPN map onto ours."""

from typing import Any

from torch import Tensor

from bts_lightning.modalities import MODALITIES, SHOWN_AS
from bts_lightning.networks.backbone import Backbone, Features
from bts_lightning.networks.mifpn import MIFPN
from tests.networks.conformity import Lesson, Recorded

# What the official code holds without effect; the selection of level 5 has its patch's size.
DEAD = {80: 12_331_268, 48: 12_324_996}


def build(config: dict[str, Any]) -> MIFPN:
    leak = "released" if config["token_mean"] == "all" else "none"
    return MIFPN(width=config["base"], patch=config["input"][2], depth=config["depth"], leak=leak)


def salt(name: str) -> int:
    """Give ten times the number of the modality that owns a parameter."""
    parts = name.split(".")
    owned = parts[0] in {"encoders", "prompt_units", "crossings"}
    return 10 * (int(parts[1]) + 1) if owned else 0


def inner(net: Backbone, features: Features, seen: Features) -> dict[str, Tensor]:
    """Give the tokens of both transformers, what each level selects, and the probabilities."""
    assert isinstance(net, MIFPN)
    net.training = True  # of the network alone: dropout stays off
    prompts, prompt = net.prompt(seen)
    deep = net.cross(seen, prompts)
    states, fused = net.attend(net.fusing, deep, prompt.flatten(2).mT, seen.present[0])
    output = net.decode(seen)
    net.training = False
    found = {"pgn_fusion": prompt.flatten(2).mT, "mpvt_fusion": fused}
    for m, name in enumerate(MODALITIES):
        shown = SHOWN_AS[name]
        found[f"pgn_{shown}"] = prompts[:, m].flatten(2).mT
        found[f"x5_{shown}"] = deep[:, m]
        found[f"mpvt_{shown}"] = states[:, m]
        found[f"sep_prob_{shown}"] = output.auxiliary[m].logits.softmax(dim=1)
    for level, selection in enumerate(net.selections):
        found[f"msm{level + 1}"] = selection(seen.selected(level))
    for level, deep_head in enumerate(output.auxiliary[4:], start=1):
        found[f"prm_prob_level{level}"] = deep_head.logits.softmax(dim=1)
    return found | {"prob": output.logits.softmax(dim=1)}


def losses(lesson: Lesson) -> dict[str, Tensor]:
    output, loss, label = lesson.output, lesson.loss, lesson.label
    whole = loss(output.logits, label)
    loss.dice = 0.0
    entropy = loss(output.logits, label)
    loss.dice = 1.0
    found = {"fuse_ce": entropy, "fuse_dice": whole - entropy}
    for m, name in enumerate(MODALITIES):
        found[f"sep_{SHOWN_AS[name]}"] = loss(output.auxiliary[m].logits, label)
    for level, deep in enumerate(output.auxiliary[4:], start=1):
        found[f"prm_level{level}"] = loss(deep.logits, label)
    return found | {"kl": output.penalties["prompt"], "total": lesson.total}


GOLDEN = {
    "MIFPN": Recorded(
        build,
        # Attention without a scale magnifies rounding: the files lie 1.9e-5 from double precision,
        # kernels of another processor 4e-5. A wrong epsilon gives 8e-3.
        limit=1e-4,
        auxiliary_limit=2e-4,
        loss_limit=5e-6,
        salt=salt,
        table="mifpn",
        dead=lambda config: DEAD[config["input"][2]],
        auxiliary=inner,
        experiment="mifpn",
        losses=losses,
    )
}
