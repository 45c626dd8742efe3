"""The networks of the experiments, in the small form that tests can bear."""

import re
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from bts_lightning import config
from bts_lightning.modalities import MODALITIES
from bts_lightning.networks.backbone import Backbone

# Lists of four alike that are not one a modality: RFNet's regions, experts, steps of one width,
# the distances at which UniMRSeg looks around.
# mmFormer's positions attend where their modality is absent too; the law of encoders sees them.
OTHER_FOURS = re.compile(r"\b(weigh|experts|blocks|positions|around)$")
EXPERIMENTS = Path(__file__).parents[2] / "experiments"

# How often a training step of an experiment asks a GPU for a value, and so waits; all others never.
WAITS = {"unimrseg": 1}


@cache
def networks() -> dict[str, DictConfig]:
    """Find the experiments that define a network; mix-ins define none, some share one."""
    found: dict[str, DictConfig] = {}
    for path in sorted(EXPERIMENTS.glob("*.yaml")):
        node = config.load([str(path)]).get("net")
        if OmegaConf.is_dict(node) and "_target_" in node and small(node) not in found.values():
            found[path.stem] = small(node)
    return found


def small(node: DictConfig) -> DictConfig:
    """Merge the small form of a network over its node."""
    module, name = node._target_.rsplit(".", 1)
    merged = OmegaConf.merge(node, getattr(import_module(module), name).small())
    assert isinstance(merged, DictConfig)
    return merged


def build(node: DictConfig, **extra: Any) -> Backbone:
    torch.manual_seed(0)
    network: Backbone = config.build(OmegaConf.merge(node, extra))
    with torch.no_grad():
        for parameter in network.parameters():
            # Zero-initialised tables and unit norms would hide a wrong order.
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network.eval()


def image_for(network: Backbone, batch: int = 1) -> Tensor:
    size = max(16, 2 * network.divisor)
    return torch.randn(batch, 4, size, size, size, generator=torch.Generator().manual_seed(batch))


def batch_for(size: int, present: list[list[bool]]) -> dict[str, Any]:
    flags = torch.tensor(present)
    draw = torch.Generator().manual_seed(1)
    return {
        "image": torch.randn(len(present), 4, size, size, size, generator=draw),
        "label": torch.randint(4, (len(present), size, size, size), generator=draw).byte(),
        "present": flags,
        "available": torch.ones_like(flags),
        "place": torch.tensor([0, 1]).expand(len(present), 3, 2),
        "case": [f"case {i}" for i in range(len(present))],
        "seed": list(range(len(present))),
    }


def branches(net: Backbone) -> list[torch.nn.ModuleList | torch.nn.ParameterList]:
    """List what has one part a modality, however deep it lies."""
    kinds = torch.nn.ModuleList, torch.nn.ParameterList
    lists = [each for name, each in net.named_modules() if not OTHER_FOURS.search(name)]
    fours = [each for each in lists if isinstance(each, kinds) and len(each) == len(MODALITIES)]
    # Four steps of a path have other widths; the branches of four modalities are alike.
    return [each for each in fours if len({shapes(item) for item in each}) == 1]


@torch.no_grad()
def move(items: Iterable[torch.nn.Module | torch.Tensor]) -> None:
    """Change all weights, so that whoever reads them gives something else."""
    for item in items:
        for weight in item.parameters() if isinstance(item, torch.nn.Module) else [item]:
            weight.add_(0.3 * torch.randn_like(weight))


def permute_branches(net: Backbone, order: list[int]) -> bool:
    """Give each modality the branches of another one; say whether there are any."""
    kinds = torch.nn.ModuleList, torch.nn.ParameterList
    lists = [m for m in net.children() if isinstance(m, kinds) and len(m) == len(order)]
    # Four steps of a path have other widths; the branches of four modalities are alike.
    branches = [each for each in lists if len({shapes(item) for item in each}) == 1]
    for each in branches:
        for place, item in enumerate([each[m] for m in order]):
            each[place] = item
    return bool(branches)


def shapes(item: torch.nn.Module | torch.Tensor) -> tuple[torch.Size, ...]:
    """Give the shapes of all weights."""
    weights = item.parameters() if isinstance(item, torch.nn.Module) else [item]
    return tuple(weight.shape for weight in weights)


@torch.no_grad()
def check_that_a_fusion_treats_modalities_alike(net: Backbone) -> None:
    """Move images and branches together, then each alone."""
    image, present = image_for(net), torch.tensor([[True, False, True, True]])
    order = [1, 2, 3, 0]
    before = net(image, present).logits
    images_alone = net(image[:, order], present[:, order]).logits
    assert permute_branches(net, order)
    together = net(image[:, order], present[:, order]).logits
    branches_alone = net(image, present).logits
    torch.testing.assert_close(together, before, rtol=1e-3, atol=1e-3)
    for alone in (images_alone, branches_alone):
        assert (alone - before).norm() > 0.05 * before.norm()
