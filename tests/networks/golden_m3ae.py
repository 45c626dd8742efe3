"""How the golden files of M3AE map onto ours: both stages, and every term of their losses."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bts_lightning.config import build, load
from bts_lightning.distillation.masked import MaskedAutoencodingTask
from bts_lightning.distillation.twice import SelfDistillationTask
from bts_lightning.losses import RegionLoss
from bts_lightning.networks.backbone import Backbone, Features
from bts_lightning.networks.m3ae import M3AE
from bts_lightning.networks.official.table import read_table
from tests.golden.fill_rule import make_input, make_label
from tests.networks.conformity import (
    Recorded,
    Row,
    config_of,
    deviation,
    fill_parameters,
    import_filled,
    read,
    relative,
    statistics,
    to_official,
    to_ours,
)

LIMIT, LOSS_LIMIT = 3e-6, 1e-5
TABLE = read_table("m3ae")


class Placed(M3AE):
    """Stand where the file says, with the substitute magnified as it says."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(width=config["base"])
        first = torch.tensor(config["location"][::-1])  # z, y, x there
        self.stands = torch.stack([first, torch.ones_like(first)], dim=1).unsqueeze(0)
        self.scale = config["substitute_scale"]

    def encode(self, image: Tensor, present: Tensor, place: Tensor | None = None) -> Features:
        return super().encode(image, present, self.stands)

    def cut(self, features: Features) -> Tensor:
        return self.scale * super().cut(features)


@cache
def recorded(salt: int) -> Recorded:
    return Recorded(Placed, limit=LIMIT, table="m3ae", salt=lambda name: salt, auxiliary=inner)


def inner(net: Backbone, features: Features, seen: Features) -> dict[str, Tensor]:
    assert isinstance(net, Placed)
    net.training = True
    half, quarter = (extra.logits.flip(1) for extra in net.decode(seen).auxiliary)  # ET, TC, WT
    net.training = False
    x = net.seen(seen)
    deepest = net.read(x)[1]
    return {
        "input_substituted": x,
        "bottleneck": deepest,
        "ds_quarter": quarter,
        "ds_half": half,
    }


class Stages:
    """Compare either stage; a row of the second one's losses is of two masks together."""

    def masks(self, path: Path) -> int:
        return len(read(path)["masks"])

    def check(self, path: Path, index: int) -> list[Row]:
        config = config_of(path)
        if "visible_tokens" in read(path):
            return list(reconstruction(path, config))
        entry = recorded(config.get("salt_of_every_parameter", 0))
        rows = entry.check(path, index)
        if index < len(config["loss_pairs"]):
            rows += pair(entry, path, config, index)
        return rows


def pair(entry: Recorded, path: Path, config: dict[str, Any], index: int) -> Iterator[Row]:
    """Compare the losses of a case that is seen through two masks."""
    golden, (net, features) = read(path), entry.network(path, torch.float32)
    assert isinstance(net, Placed)
    masks = torch.from_numpy(golden["masks"][config["loss_pairs"][index]])
    label = to_ours(torch.from_numpy(make_label(config["input"][2])), TABLE).repeat(2, 1, 1, 1)
    loss: RegionLoss = build(load(["m3ae"]).task.loss)
    net.training = True
    with torch.no_grad():
        output, deepest = net.read(net.seen(features.repeat(2).restrict(masks)))
    net.training = False
    scale = config["loss_logit_scale"]
    smaller = [replace(extra, logits=scale * extra.logits) for extra in output.auxiliary]
    output = replace(output, logits=scale * output.logits, auxiliary=tuple(smaller))
    found = {}
    for name, compare in (("total_released", "quarter_logits"), ("total_paper", "bottleneck")):
        task = SelfDistillationTask(net, loss=loss, optimizer=torch.optim.Adam, compare=compare)
        terms = task.terms(output, deepest, label)
        found[name] = torch.stack(list(terms.values())).sum()
        found |= {
            "seg_out": terms["main"],
            "seg_ds_half": terms["deep/2"],
            "seg_ds_quarter": terms["deep/4"],
            f"consistency_{compare}": terms["consistency"] / task.consistency,
        }
    found["consistency_ds_quarter_logits"] = found["consistency_quarter_logits"]
    for part in ("dice", "bce"):
        others = {"bce": 0.0, "dice": 0.0} | {part: 3.0}  # their sum over the regions
        one = RegionLoss(batch_dice=True, squared=True, smooth=1.0, epsilon=0.0, **others)
        found[f"{part}_out"] = one(output.logits, label)
    for name, expected in zip(golden["loss_names"], golden["loss_values"][index], strict=True):
        # Its saturated sigmoids meet the clamp of torch's cross entropy of probabilities.
        if name != "seg_out_unscaled":
            error = abs(float(found[str(name)]) - expected) / max(1, abs(expected))
            yield Row(f"loss {name}", error, LOSS_LIMIT)


def reconstruction(path: Path, config: dict[str, Any]) -> Iterator[Row]:
    """Compare the first stage, with the tokens that the file shows."""
    golden, size = read(path), config["input"][2]
    task = MaskedAutoencodingTask(Placed(config), loss=RegionLoss(), optimizer=torch.optim.Adam)
    import_filled(task.net, TABLE)
    fill_parameters(task.reconstruct)
    grid = (size // task.token,) * 3
    shown = torch.zeros(4 * grid[0] ** 3, dtype=torch.bool)
    shown[torch.from_numpy(golden["visible_tokens"]).long()] = True
    image = to_ours(torch.from_numpy(make_input(size)), TABLE)
    tokens, every = to_ours(shown.view(1, 4, *grid), TABLE), torch.ones(1, 4, dtype=torch.bool)
    with torch.no_grad():
        restored = task.restore(image, every, tokens, None)
        terms = task.terms(restored, image, every)
    count = sum(p.numel() for p in task.parameters() if p.requires_grad)
    given, step = to_official(restored, TABLE)[0], config["stride"]
    taken = given[:, ::step, ::step, ::step].numpy()
    yield Row("parameters", abs(count - config["params"]), 0)
    yield Row("logits", relative(taken, golden["out"][0]), LIMIT)
    yield Row("statistics", deviation(statistics(given), golden["out_stats"][0]), LIMIT)
    values = dict(zip(golden["loss_names"].tolist(), golden["loss_values"][0], strict=True))
    norm = config["substitute_scale"] * float(terms["substitute"]) / task.smoothness
    for name, found in (
        ("mse", float(terms["reconstruction"])),
        ("limage_norm_float64", norm),
        ("total_float64_norm", float(terms["reconstruction"]) + task.smoothness * norm),
    ):
        yield Row(f"loss {name}", abs(found / values[name] - 1), LOSS_LIMIT)


GOLDEN = {"M3AE": Stages()}
