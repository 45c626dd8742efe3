"""How the golden files of SMU-Net map onto ours: the paths of all subsets, and their terms."""

import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bts_lightning.distillation.paths import FULL, MISSING, disagreement, judgement, run
from bts_lightning.distillation.style import (
    StyleTask,
    enlarged,
    gram_difference,
    released_weight,
    style_discriminator,
)
from bts_lightning.losses import SeparateLabelLoss
from bts_lightning.networks.official.table import read_table
from bts_lightning.networks.smunet import SMUNet
from tests.golden.fill_rule import make_input, make_label, noise
from tests.networks.conformity import (
    Array,
    Row,
    config_of,
    deviation,
    fill_parameters,
    import_filled,
    mask_name,
    read,
    relative,
    statistics,
)

LIMIT = 3e-6
LOSS_LIMIT = 1e-5
# Map i of ours is map MAPS[i] of the official order ED, NCR/NET, ET, background.
MAPS = [3, 1, 0, 2]
SIZE = 32


class Paths:
    """Run the path of a mask, the first of which is the full one; or the terms by themselves."""

    def masks(self, path: Path) -> int:
        return len(read(path).get("masks", [()]))

    def check(self, path: Path, index: int) -> list[Row]:
        return self.paths(path, index) if "masks" in read(path) else terms_alone(path)

    def paths(self, path: Path, index: int) -> list[Row]:
        golden, config = read(path), config_of(path)
        task = filled(path, mask_name(path, index))
        net = task.peer if index == 0 else task.net
        with torch.no_grad():
            image = torch.from_numpy(make_input(SIZE))
            present = torch.from_numpy(golden["masks"][index : index + 1])
            logits, depth = run(net, image, present)
            official = logits[0][torch.tensor(MAPS).argsort()]
            inner = self.inner(net, official, depth)
        step = config["stride"]
        taken = official[:, ::step, ::step, ::step].numpy()
        count = sum(p.numel() for p in net.parameters())
        rows = [
            Row("parameters", abs(count - config["params_of_rows"][index]), 0),
            Row("logits", relative(taken, golden["out"][index]), LIMIT),
            Row("statistics", deviation(statistics(official), golden["out_stats"][index]), LIMIT),
        ]
        for channel, values in enumerate(official):
            error = deviation(statistics(values), golden["out_channel_stats"][index][channel])
            rows.append(Row(f"channel {channel}", error, LIMIT))
        for name, row, stats in zip(
            golden["aux_names"], golden["aux_mask_index"], golden["aux_stats"], strict=True
        ):
            if row == index:
                key = str(name).split()[0]
                rows.append(Row(key, deviation(statistics(inner[key]), stats), LIMIT))
        if index:
            full, full_depth = full_path(path)
            scale = config["loss_logit_scale"]
            rows += compared(
                golden, index - 1, losses(task, full, logits, (full_depth, depth), scale)
            )
        return rows

    def inner(self, net: nn.Module, official: Tensor, depth: Tensor) -> dict[str, Tensor]:
        """Give what the path makes of its deepest features, and its maps."""
        assert isinstance(net, SMUNet)
        style, content = depth.chunk(2, dim=1)
        merged, prob = net.merge(depth), official.sigmoid()
        return {"style": style, "content": content, "merged": merged, "prob": prob}


@lru_cache(maxsize=1)
def full_path(path: Path) -> tuple[Tensor, Tensor]:
    """Run the full path once a file."""
    with torch.no_grad():
        image = torch.from_numpy(make_input(SIZE))
        return run(filled(path).peer, image, torch.ones(1, 4, dtype=torch.bool))


class AtEpoch10(StyleTask):
    """Weigh as the recorded losses do."""

    current_epoch = 10  # type: ignore[assignment]


def filled(path: Path, reads: str = "flair") -> StyleTask:
    """Build both paths with dropout off, and fill everything by the rule."""
    config = config_of(path)
    task = AtEpoch10(
        SMUNet(reads=reads),
        peer=SMUNet(),
        loss=SeparateLabelLoss(),
        optimizer=torch.optim.Adam,
        discriminator_optimizer=torch.optim.Adam,
        style="released",
    ).eval()
    salts = {"net": config["salt_missing_path"], "peer": config["salt_full_path"]}
    import_filled(task, read_table("smunet"), lambda name: salts.get(name.split(".")[0], 0))
    return task


@torch.no_grad()
def losses(
    task: StyleTask, full: Tensor, missing: Tensor, depths: tuple[Tensor, Tensor], scale: float
) -> dict[str, float]:
    """Give the recorded terms: alone, and as the task adds them up."""
    loss, label = SeparateLabelLoss(), torch.from_numpy(make_label(SIZE))
    found = {"ramp_epoch10": task.ramp()} | between(depths)
    for end, factor in (("", scale), ("_unscaled", 1.0)):
        logits = factor * full, factor * missing
        apart = disagreement(logits[0].sigmoid(), logits[1].sigmoid())
        found[f"dice_full{end}"], found[f"dice_missing{end}"] = (
            float(loss(x, label)) for x in logits
        )
        found[f"consistency_mse{end}"] = float(apart)
        terms = task.terms(logits, depths, label)
        judged = [name for name in terms if name.endswith("/style")]
        total = sum(float(value) for name, value in terms.items() if name not in judged)
        found[f"loss_co_epoch10{end}"] = total
    return found


def between(depths: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Compare contents and styles of the full and the missing path."""
    (full_style, full), (style, content) = (depth.chunk(2, dim=1) for depth in depths)
    gram = gram_difference(full_style.double(), style.double())
    return {
        "content_mse": float(F.mse_loss(content, full)),
        "style_gram": released_weight(style) * float(gram),
    }


def terms_alone(path: Path) -> list[Row]:
    """Judge the recorded features, which have the official size."""
    config = config_of(path)
    judge = style_discriminator(128)
    fill_parameters(judge)
    made = ((1, 1.0), (2000003, 1.0), (1000003, 2.0), (3000017, 1.0))  # style, content
    full_style, full, style, content = (made_up(first, height) for first, height in made)
    with torch.no_grad():
        said = {"full": judge(enlarged(full_style)), "missing": judge(enlarged(style))}
        found = {f"d_{name}_logit": float(logit) for name, logit in said.items()}
        full_said, missing_said = (config["adv_logit_scale"] * logit for logit in said.values())
        found |= {
            "adv_missing_as_full": float(judgement(missing_said, FULL)),
            "d_full": float(judgement(full_said, FULL)),
            "d_missing": float(judgement(missing_said, MISSING)),
        }
    depths = torch.cat([full_style, full], dim=1), torch.cat([style, content], dim=1)
    count = sum(p.numel() for p in judge.parameters())
    rows = [Row("parameters", abs(count - config["discriminator_params"]), 0)]
    return rows + compared(read(path), 0, found | between(depths))


def made_up(first: int, height: float) -> Tensor:
    """Give the features of the rule, at the official size."""
    shape = (1, 128, 20, 24, 16)
    values = height * noise(np.arange(math.prod(shape)) + first)
    return torch.from_numpy(values.reshape(shape).astype(np.float32))


def compared(golden: dict[str, Array], row: int, found: dict[str, float]) -> list[Row]:
    """Compare terms by their names; those that are tiny by what they are."""
    rows = []
    for name, expected in zip(golden["loss_names"], golden["loss_values"][row], strict=True):
        least = 0.0 if name == "style_gram" else 1.0
        error = abs(found[str(name)] - expected) / max(least, abs(expected))
        rows.append(Row(f"loss {name}", error, LOSS_LIMIT))
    return rows


GOLDEN = {"SMU-Net": Paths()}
