from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bts_lightning.config import build, load
from bts_lightning.distillation.passion import coarse_heads, own_heads
from bts_lightning.errors import ConfigError
from bts_lightning.modalities import MODALITIES, SUBSETS, subset_name
from bts_lightning.networks.gmd import GMD
from bts_lightning.task import SegmentationTask
from tests.golden.fill_rule import make_input, make_label
from tests.networks import parts
from tests.networks.conformity import (
    FOLDER,
    fill_parameters,
    read,
    statistics,
)

ALL = torch.ones(1, 4, dtype=torch.bool)
GOLDEN = read(FOLDER / "gmd_32.npz")


@pytest.mark.parametrize(("width", "count"), [(16, 3_245_235), (32, 12_960_099)])
def test_full_width_has_the_official_number_of_weights(width: int, count: int) -> None:
    net = GMD(width=width)
    assert sum(p.numel() for p in net.parameters()) == count


def test_each_modality_owns_its_norms_alone() -> None:
    net = GMD()
    assert [sum(p.numel() for p in own.parameters()) for own in net.norms] == [2208] * 4


def test_norms_go_with_their_modality() -> None:
    net = parts.build(parts.small(load(["gmd"]).net))
    parts.check_that_a_fusion_treats_modalities_alike(net)


def official() -> dict[str, Tensor]:
    """Give the terms of a first step on the official input."""
    net = GMD()
    fill_parameters(net)
    batch: dict[str, Any] = {
        "image": torch.from_numpy(make_input(32)),
        "label": torch.from_numpy(make_label(32)),
        "present": ALL,
        "available": ALL,
    }
    loss = build(load(["gmd"]).task.loss)
    task = SegmentationTask(net.train(), loss=loss, optimizer=torch.optim.Adam)
    terms = task._step(batch)
    torch.stack(list(terms.values())).sum().backward()
    terms = {name: value.detach() for name, value in terms.items()}
    return terms | {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def official_name(name: str) -> str:
    """Name a parameter of ours as the official code does."""
    *place, kind = name.split(".")
    if place == ["head"]:
        return f"module.outc.conv.module.{kind}"
    if place[0] == "norms":
        step, second = divmod(int(place[2]), 2)
    else:
        step, second = int(place[2]) + 5 * (place[1] == "up"), int(place[3])
    where = "inc" if step == 0 else f"down{step}.double_conv" if step < 5 else f"up{step - 4}.conv"
    if place[0] == "norms":
        return f"module.{where}.norm{second + 1}.norm_{place[1]}.{kind}"
    return f"module.{where}.conv{second + 1}.module.{kind}"


def test_a_step_has_the_official_losses_and_gradients() -> None:
    # No two of these 15 gradients conflict, so the official surgery leaves their mean as it is;
    # `test_surgery.py` is about those that do.
    found = official()
    for subset, expected in zip(GOLDEN["pc_subsets"], GOLDEN["pc_losses"], strict=True):
        kind = "modality" if subset.sum() == 1 else "subset"
        name = "main" if subset.all() else f"{kind}/{subset_name(subset.tolist())}"
        assert 15 * float(found[name]) == pytest.approx(expected, abs=1e-6)
    rows = dict(zip(GOLDEN["pc_param_names"], GOLDEN["pc_grad_stats_zero_grads"], strict=True))
    for name, _ in GMD().named_parameters():
        row = rows.pop(official_name(name))
        difference = np.abs(statistics(found[name]) - row)
        # Of a convolution's bias before a norm nothing is left but rounding.
        scale = max(row[4], 1e-3)
        assert difference[[0, 1, 4, 5]].max() < 1e-4 * scale, name
    assert not rows


def test_a_subset_that_a_case_lacks_teaches_nothing() -> None:
    net, image = GMD(**GMD.small()).train(), torch.randn(2, 4, 32, 32, 32)
    present = torch.tensor([[True, True, True, True], [True, False, False, True]])
    output = net(image, present, present)
    valid = {each.name: each.valid for each in output.auxiliary}
    assert len(valid) == len(SUBSETS) - 1
    taught = ("modality/t1", "modality/flair", "subset/t1+flair")
    for name, rows in valid.items():
        assert rows is not None
        assert rows.tolist() == [True, name in taught]


def test_what_was_dropped_teaches_nevertheless() -> None:
    net, image = GMD(**GMD.small()).train(), torch.randn(1, 4, 32, 32, 32)
    alone = torch.tensor([[False, False, True, False]])
    output = net(image, alone, ALL)
    single = next(each.logits for each in output.auxiliary if each.name == "modality/t2")
    torch.testing.assert_close(output.logits, single)
    assert all(each.valid is not None and each.valid.all() for each in output.auxiliary)


def test_passion_takes_no_subset_for_a_coarser_level() -> None:
    net, image = GMD(**GMD.small()).train(), torch.randn(1, 4, 32, 32, 32)
    output = net(image, ALL, ALL)
    assert [head.name for head in own_heads(output)] == [f"modality/{m}" for m in MODALITIES[::-1]]
    assert not coarse_heads(output)


def test_width_is_in_groups() -> None:
    with pytest.raises(ConfigError, match="multiple of 8"):
        GMD(width=20)
