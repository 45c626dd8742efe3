"""A configuration names classes of known kinds and can do nothing else."""

import dis
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType

import pytest

import bts_lightning
from bts_lightning.config import targets
from bts_lightning.errors import ConfigError
from bts_lightning.runs.processes import Process


@pytest.fixture(autouse=True)
def trust_nobody(monkeypatch):
    monkeypatch.setattr(targets, "_allowed_by_user", set())
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.parametrize(
    "target",
    [
        "bts_lightning.availability.Uniform15",
        "bts_lightning.schedules.Poly",
        "torch.nn.Conv3d",
        "torch.optim.AdamW",
        "torch.optim.lr_scheduler.CosineAnnealingLR",
        "lightning.Trainer",
        "lightning.pytorch.callbacks.EMAWeightAveraging",
        "lightning.pytorch.callbacks.ModelCheckpoint",
        "lightning.pytorch.loggers.WandbLogger",
        "lightning.pytorch.strategies.DDPStrategy",
        "torchio.RandomNoise",
        "torchmetrics.classification.MulticlassAccuracy",
    ],
)
def test_the_parts_of_an_experiment_are_found(target):
    assert targets.find_class(target, "key").__name__ == target.rpartition(".")[2]


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("os.system", "comes from package 'os'; allowed are bts_lightning, torch,"),
        ("builtins.eval", "comes from package 'builtins'"),
        ("subprocess.Popen", "comes from package 'subprocess'"),
        ("pathlib.Path", "comes from package 'pathlib'"),
        ("torch.load", "this is a function; only classes can be built"),
        ("torch.hub.load", "this is a function; only classes can be built"),
        ("torch.os.system", "torch has no module 'os'"),
        ("torch.hub.os.system", "torch.hub has no module 'os'"),
        ("bts_lightning.config.merge.Path", "is pathlib"),
        (
            "bts_lightning.config.merge.yaml.YAMLObject",
            "bts_lightning.config.merge has no module 'yaml'",
        ),
        ("torch.utils.data.DataLoader", "not a kind of thing"),
        ("torch.package.PackageImporter", "not a kind of thing"),
        ("bts_lightning.runs.processes.Process", "not a kind of thing"),
        ("bts_lightning.distillation.chain.run.Chain", "not a kind of thing"),
        ("bts_lightning.sweep.store.Store", "not a kind of thing"),
        ("bts_lightning.data.patches.PatchLoader", "not a kind of thing"),
        ("torch.nn", "this is a module; its classes are"),
        ("torch", "expected the full public name of a class"),
        ("torch.nn.Module.__subclasses__", "expected the full public name of a class"),
        ("torch._utils.classproperty", "expected the full public name of a class"),
        ("torch..Tensor", "expected the full public name of a class"),
        ("", "expected the full public name of a class"),
        (3, "expected the full public name of a class"),
        (None, "expected the full public name of a class"),
        ("bts_lightning.availability.Availability", "this class is abstract"),
    ],
)
def test_anything_else_is_refused(target, reason):
    with pytest.raises(ConfigError) as caught:
        targets.find_class(target, "net._target_")
    assert reason in str(caught.value)
    assert str(caught.value).startswith("net._target_")


def test_a_package_that_is_not_allowed_is_not_even_imported(tmp_path, monkeypatch):
    (tmp_path / "stranger.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="If you trust it: --allow stranger"):
        targets.find_class("stranger.Net", "net._target_")


# What starts a process, or touches files or the network, by the name under which it is called.
TOUCHES = {
    *("open", "fdopen", "Popen", "subprocess", "check_call", "check_output", "system", "fork"),
    *("mkdir", "makedirs", "touch", "unlink", "rmdir", "rmtree", "rename", "symlink_to", "chmod"),
    *("read_text", "read_bytes", "write_text", "write_bytes", "write_whole", "whole", "load"),
    *("exists", "is_file", "is_dir", "iterdir", "glob", "rglob", "walk", "listdir", "scandir"),
    *("stat", "memmap", "socket", "urlopen", "requests", "prepare", "read_checkpoint"),
}


def nameable() -> list[type]:
    """List the classes of ours that a configuration can name."""
    classes = []
    root = Path(bts_lightning.__file__).parent
    for file in sorted(root.rglob("*.py")):
        # A module that has no public class need not be imported.
        names = re.findall(r"^class ([A-Za-z]\w*)", file.read_text("utf-8"), re.MULTILINE)
        place = ".".join(["bts_lightning", *file.relative_to(root).with_suffix("").parts])
        for name in names:
            try:
                classes.append(
                    targets.find_class(f"{place.removesuffix('.__init__')}.{name}", "key")
                )
            except ConfigError:
                continue
    return classes


def names_in(code: CodeType) -> set[str]:
    """List the names that are read; one that is only given a value calls nothing."""
    inner = [names_in(one) for one in code.co_consts if isinstance(one, CodeType)]
    read = (one.argval for one in dis.get_instructions(code) if one.opname.startswith("LOAD_"))
    return {name for name in read if isinstance(name, str)}.union(*inner)


def makers(cls: type) -> list[tuple[type, object]]:
    """List what runs when a class is built."""
    names = ("__new__", "__init__", "__post_init__")
    return [(cls, vars(base)[name]) for base in cls.__mro__ for name in names if name in vars(base)]


def reached(cls: type) -> Iterator[tuple[FunctionType, set[str]]]:
    """Yield each function of ours that building a class may call, and the names that it uses."""
    waiting, seen = makers(cls), set()
    while waiting:
        owner, function = waiting.pop()
        is_ours = str(getattr(function, "__module__", "")).startswith("bts_lightning")
        if not isinstance(function, FunctionType) or not is_ours or (owner, function) in seen:
            continue
        seen.add((owner, function))
        names = names_in(function.__code__)
        yield function, names
        for name in names:
            value = function.__globals__.get(name)
            waiting += makers(value) if isinstance(value, type) else [(owner, value)]
            waiting.append((owner, getattr(owner, name, None)))


def test_no_class_that_can_be_named_starts_processes_or_touches_files_when_it_is_built():
    classes = nameable()
    assert len(classes) > 100
    assert any("Popen" in names for _, names in reached(Process)), "the search is blind"
    assert not {
        f"{cls.__qualname__}: {function.__qualname__} names {', '.join(found)}"
        for cls in classes
        for function, names in reached(cls)
        if (found := sorted(names & TOUCHES))
    }


def own_package(folder: Path, monkeypatch, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(text)
    monkeypatch.chdir(folder)
    targets.allow([name])


def test_an_allowed_package_is_found_in_the_current_folder(tmp_path, monkeypatch):
    text = "from torch import nn\nclass Net(nn.Module): pass\nclass Other: pass\n"
    own_package(tmp_path, monkeypatch, "own_parts", text)
    assert targets.find_class("own_parts.Net", "key").__module__ == "own_parts"
    with pytest.raises(ConfigError, match="not a kind of thing"):
        targets.find_class("own_parts.Other", "key")


def test_the_current_folder_does_not_stand_in_for_installed_packages(tmp_path, monkeypatch):
    own_package(tmp_path, monkeypatch, "own_last", "")
    assert sys.path[-1] == ""


def test_a_class_that_derives_from_ours_is_of_a_kind(tmp_path, monkeypatch):
    text = "from bts_lightning.availability import Uniform15\nclass Mine(Uniform15):\n    'Same.'\n"
    own_package(tmp_path, monkeypatch, "own_draw", text)
    assert targets.find_class("own_draw.Mine", "key").__name__ == "Mine"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import no_such_package", "own_broken. cannot be imported: No module named"),
        ("1 / 0", "importing own_broken. failed: ZeroDivisionError"),
        ("class Net(", "importing own_broken. failed: SyntaxError"),
    ],
)
def test_an_own_package_that_cannot_be_imported_is_named(tmp_path, monkeypatch, text, reason):
    name = f"own_broken{len(text) % 10}"
    own_package(tmp_path, monkeypatch, name, text)
    with pytest.raises(ConfigError, match=reason):
        targets.find_class(f"{name}.Net", "net._target_")


def test_only_a_top_package_can_be_allowed():
    with pytest.raises(ConfigError, match="give the name of a top package"):
        targets.allow(["os.path"])
