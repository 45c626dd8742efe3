"""Networks of the experiments, read without what a training needs beside torch.

A machine with a GPU for an hour may have torch and little more, so this reads the YAML files by
itself; `bts_lightning.config` is what checks them.
"""

from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import yaml
from torch import nn

import bts_lightning
from bts_lightning.errors import UserError, did_you_mean
from bts_lightning.losses import SegmentationLoss
from bts_lightning.networks.backbone import Backbone

Node = dict[str, Any]
PACKAGE = Path(bts_lightning.__file__).parent
NOT_PUBLISHED = {"demo"}  # small enough for a laptop


class Recipe:
    """An experiment with a network, named as `a2fseg` or `a2fseg:variant=paper,width=8`."""

    def __init__(self, name: str) -> None:
        self.name = name
        experiment, _, changes = name.partition(":")
        self.tree = deepcopy(read(experiment))  # files are read once, for all recipes
        if "_target_" not in (self.tree.get("net") or {}):
            raise UserError(f"experiment {experiment} has no network; {_networks()}")
        for change in filter(None, changes.split(",")):
            key, _, value = change.partition("=")
            if key not in (takes := _arguments(self.tree["net"]["_target_"])):
                raise UserError(f"{experiment} has no {key!r}; {did_you_mean(key, takes)}")
            self.tree["net"][key] = yaml.safe_load(value)

    def net(self, **changes: Any) -> Backbone:
        """Build the network; changes go to the innermost, whatever stands around it."""
        tree = {**self.tree, "net": {**self.tree["net"], **changes}}
        node = tree["task"].get("net", "${net}")
        built = build(resolve(node if isinstance(node, dict) else tree["net"], tree))
        assert isinstance(built, Backbone)
        return built

    def loss(self) -> SegmentationLoss:
        """Build the loss."""
        built = build(resolve(self.tree["task"]["loss"], self.tree))
        assert isinstance(built, SegmentationLoss)
        return built

    def task(self, net: Backbone, **settings: Any) -> Any:
        """Build the task that trains this network."""
        node = {**resolve(self.tree["task"], self.tree), **settings}
        node = {k: v for k, v in node.items() if k not in ("net", "schedule")}
        return build({**node, "net": net})

    @property
    def patch(self) -> int:
        """Edge of the published training patch."""
        patch = self.tree["data"]["patch"]
        return int(patch if isinstance(patch, int) else max(patch))

    @property
    def batch_size(self) -> int:
        """Published samples a step."""
        return int(self.tree["data"]["batch_size"])


def experiments() -> list[str]:
    """Name all experiments that train a network as published."""
    names = sorted({file.stem for file in folder().glob("*.yaml")} - NOT_PUBLISHED)
    return [name for name in names if "_target_" in (read(name).get("net") or {})]


def folder() -> Path:
    """Find the experiments: in a wheel inside the package, else beside it."""
    inside = PACKAGE / "experiments"
    return inside if inside.is_dir() else PACKAGE.parent / "experiments"


def read(name: str) -> Node:
    """Read an experiment with all that it extends."""
    file = folder() / f"{name.removesuffix('.yaml')}.yaml"
    if not file.exists():
        raise UserError(f"there is no experiment {name!r}; {_networks()}")
    content = dict(_content(file))
    merged: Node = {}
    for base in content.pop("extends", []):
        merged = merge(merged, read(base))
    return merge(merged, content)


@cache
def _content(file: Path) -> Node:
    content: Node = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    return content


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> Node:
    """Lay one node over another; a node of another class replaces it."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        if value == "???":
            continue
        if isinstance(value, dict) and isinstance(below, dict):
            same = value.get("_target_", below.get("_target_")) == below.get("_target_")
            merged[key] = merge(below, value) if same else value
        else:
            merged[key] = value
    return merged


def resolve(node: Any, tree: Node) -> Any:
    """Replace `${a.b}` by what stands there."""
    if isinstance(node, dict):
        return {key: resolve(value, tree) for key, value in node.items()}
    if isinstance(node, list):
        return [resolve(value, tree) for value in node]
    if isinstance(node, str) and node.startswith("${") and node.endswith("}"):
        found: Any = tree
        for key in node[2:-1].split("."):
            found = found[key]
        return resolve(found, tree)
    return node


def build(node: Any) -> Any:
    """Build a node of our own files."""
    if isinstance(node, list):
        return [build(value) for value in node]
    if not isinstance(node, dict):
        return node
    arguments = {key: build(value) for key, value in node.items() if key[0] != "_"}
    if "_target_" not in node:
        return arguments
    target = _find(node["_target_"])
    if not node.get("_partial_"):
        return target(**arguments)
    return lambda *given, **more: target(*given, **arguments, **more)


def _find(place: str) -> Any:
    module, _, name = place.rpartition(".")
    return getattr(import_module(module), name)


def _arguments(place: str) -> list[str]:
    return list(signature(_find(place)).parameters)


def count_weights(net: nn.Module) -> int:
    """Count what learns."""
    return sum(parameter.numel() for parameter in net.parameters())


def _networks() -> str:
    return did_you_mean("", (f.stem for f in folder().glob("*.yaml")))
