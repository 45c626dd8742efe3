"""What the source says a class takes is what the class takes, and is known without importing it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from bts_lightning.config import check_names, load, source, targets
from bts_lightning.config.merge import SEARCH
from bts_lightning.config.schema import REQUIRED, signature
from bts_lightning.errors import ConfigError


def nodes(tree: Any) -> list[str]:
    if isinstance(tree, list):
        return [target for item in tree for target in nodes(item)]
    if not isinstance(tree, dict):
        return []
    own = [tree["_target_"]] if "_target_" in tree else []
    return own + [target for item in tree.values() for target in nodes(item)]


def named_by_experiments() -> list[str]:
    files = sorted(SEARCH[-1].glob("*.yaml"))
    trees = [OmegaConf.to_container(load([str(file)]), resolve=False) for file in files]
    return sorted(set(nodes(trees)))


@pytest.mark.parametrize(
    "target",
    [
        *named_by_experiments(),
        "lightning.pytorch.Trainer",
        "lightning.pytorch.callbacks.EMAWeightAveraging",
        "lightning.pytorch.loggers.CSVLogger",
        "lightning.pytorch.strategies.DDPStrategy",
        "torch.nn.Conv3d",
        "torch.optim.Adam",
        "torch.optim.lr_scheduler.CosineAnnealingLR",
        "torchio.RandomNoise",
        "torchmetrics.classification.MulticlassAccuracy",
    ],
)
def test_the_source_says_what_the_class_says_or_nothing(target):
    said = source.arguments(target)
    takes = signature(targets.find_class(target, "key"))
    assert said is None or (said == list(takes.arguments) and not takes.is_open)


def test_the_source_knows_the_heavy_ones():
    said = {target: source.arguments(target) for target in named_by_experiments()}
    for target in (
        "lightning.Trainer",
        "lightning.pytorch.callbacks.ModelCheckpoint",
        "bts_lightning.data.module.BratsDataModule",
        "bts_lightning.networks.a2fseg.A2FSeg",
        "torch.optim.AdamW",
        # What these hand on to their base is read there.
        "bts_lightning.distillation.peers.PeerTask",
        "bts_lightning.distillation.cotraining.CoTrainingTask",
    ):
        assert said[target], target


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("class Net:\n    def __init__(self, a, **more): ...", "Net"),
        ("class Net(Base): ...", "Net"),
        ("@decorated\nclass Net:\n    def __init__(self, a): ...", "Net"),
        ("class Net(metaclass=Odd):\n    def __init__(self, a): ...", "Net"),
        ("class Net:\n    @decorated\n    def __init__(self, a): ...", "Net"),
        ("class Net:\n    __init__ = made()", "Net"),
        ("class Net:\n    def __init__(self, a): ...\nNet = wrapped(Net)", "Net"),
        ("class Net:\n    def __init__(self, a): ...\nfrom elsewhere import *", "Net"),
        ("if fast:\n    class Net:\n        def __init__(self, a): ...", "Net"),
        ("from .near import Net", "Net"),
        ("from own_place import Net", "Net"),
        ("Net = 3", "Net"),
        ("", "Net"),
    ],
)
def test_what_the_source_leaves_open_is_left_to_the_class(tmp_path, monkeypatch, text, name):
    (tmp_path / "own_place.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert source.arguments(f"own_place.{name}") is None


def test_a_class_is_followed_to_where_it_is_written(tmp_path, monkeypatch):
    (tmp_path / "own_house").mkdir()
    (tmp_path / "own_house" / "__init__.py").write_text("from own_house.room import Net as Face\n")
    text = "class Net:\n    def __init__(self, a, /, b: int = 1, *rest, c=2): ...\n"
    (tmp_path / "own_house" / "room.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert source.arguments("own_house.Face") == ["a", "b", "c"]
    assert "own_house" not in sys.modules


class Base:
    def __init__(self, net: int, *, loss: int, weight: float = 1.0) -> None: ...


class Hands(Base):
    def __init__(self, net: int, *, own: int = 0, **options: Any) -> None:
        super().__init__(net, **options)


class Fills(Base):
    def __init__(self, **options: Any) -> None:
        super().__init__(3, loss=2, **options)


def test_what_a_base_needs_and_nobody_fills_in_is_needed():
    takes = signature(Hands).arguments
    assert {name: one.default for name, one in takes.items()} == {
        "net": REQUIRED,
        "own": 0,
        "loss": REQUIRED,
        "weight": 1.0,
    }
    filled = signature(Fills).arguments
    assert [filled[name].default for name in ("net", "loss", "weight")] == [None, None, 1.0]


@pytest.mark.parametrize("target", ["", "Net", ".", "no_such_package.Net", "sys.Net", "torch..Net"])
def test_a_target_that_is_none_is_left_to_the_class(target):
    assert source.arguments(target) is None


def test_a_package_that_is_not_trusted_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "stranger.py").write_text("class Net:\n    def __init__(self, a): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    tree = {"net": {"_target_": "stranger.Net", "b": 1}}
    check_names(tree)
    monkeypatch.setattr(targets, "_allowed_by_user", {"stranger"})
    with pytest.raises(ConfigError, match=r"unknown key 'net\.b'; Net takes a"):
        check_names(tree)


MISTAKES = [
    ("net.widht=8", "unknown key 'net.widht'; did you mean net.width?"),
    ("task.los=1", "unknown key 'task.los'; did you mean task.loss?"),
    ("data.bath_size=8", "unknown key 'data.bath_size'; did you mean data.batch_size?"),
    ("trainer.max_epoch=8", "unknown key 'trainer.max_epoch'; did you mean trainer.max_epochs?"),
    ("callbacks.best.monitr=x", "did you mean callbacks.best.monitor?"),
]


def test_a_misspelt_key_is_found_before_anything_heavy_is_imported(tmp_path: Path):
    # Imports are counted, not seconds: those of torch and Lightning are five on a good day.
    script = f"""
import sys
from bts_lightning.__main__ import main
heavy = {{"torch", "lightning", "numpy", "pandas", "scipy", "torchio", "numba"}}
for verb in ("train", "show", "sweep", "study", "distill"):
    for word in {[word for word, _ in MISTAKES]}:
        assert main([verb, "a2fseg", word]) == 2
        assert not heavy & set(sys.modules), (verb, word, heavy & set(sys.modules))
assert main(["show"]) == 0
for words in (["evaluate", "gone"], ["predict", "gone", "--out", "x.nii.gz"], ["train", "gone"]):
    assert main(words) == 2
assert not heavy & set(sys.modules), heavy & set(sys.modules)
print("imported", len(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for _, told in MISTAKES:
        assert done.stderr.count(told) == 5, done.stderr
    # 411 when this was written, most of them rich's and OmegaConf's.
    assert int(done.stdout.split()[-1]) < 600
