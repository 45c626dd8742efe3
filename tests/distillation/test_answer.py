"""What the head of every network reads is found."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from bts_lightning import config
from bts_lightning.distillation.answer import HeadWatch
from bts_lightning.networks.backbone import Backbone
from tests.distillation.parts import COMPLETE


def every_network() -> list[Any]:
    folder = Path(__file__).parents[2] / "experiments"
    nodes = {path.stem: config.load([str(path)]).get("net") for path in folder.glob("*.yaml")}
    nodes = {n: node for n, node in nodes.items() if OmegaConf.is_dict(node) and "_target_" in node}
    return [pytest.param(node, id=name) for name, node in sorted(nodes.items())]


@pytest.mark.parametrize("node", every_network())
@pytest.mark.parametrize("training", [True, False])
def test_the_head_of_every_network_is_found(node: Any, training: bool) -> None:
    from bts_lightning.config.targets import find_class

    small = find_class(node._target_, "net").small()
    net: Backbone = config.build(OmegaConf.merge(node, small)).train(training)
    size = max(16, 2 * net.divisor, small.get("patch", 0))
    image = torch.randn(2, 4, size, size, size)
    watch = HeadWatch(net)
    watch.watch(image, COMPLETE)
    assert all(module.training == training for module in net.modules())
    read = watch.take(net(image, COMPLETE))
    assert read.shape[0] == 2
    assert read.shape[2:] == image.shape[2:]
    # Nobody asked: nothing is kept.
    net(image, COMPLETE)
    assert not watch._caught
