"""Load, check and build an experiment; the signature of a constructor is the schema of its node."""

import functools
import re
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from bts_lightning.config import merge, reach, source, targets
from bts_lightning.config.merge import MAPPINGS, OPTIONAL, SEARCH, SECTIONS, join, one_line
from bts_lightning.config.schema import (
    REQUIRED,
    MisfitError,
    Node,
    describe,
    fit,
    is_untyped,
    nodes_in,
    options,
    signature,
)
from bts_lightning.errors import ConfigError, UserError, did_you_mean

# Places inside the run's folder, filled in when it is built: no experiment has to name them.
SUPPLIED = ("logger.*.save_dir", "callbacks.*.dirpath")

# Made by their owner once there are parameters, or a patch: an experiment gives factories of them.
_MADE_LATER = (
    "torch.optim.Optimizer",
    "torch.optim.lr_scheduler.LRScheduler",
    "torchio.data.PatchSampler",
)
_OWN_KEYS = ("_target_", "_partial_")


def load(
    words: Sequence[str], *, allow: Collection[str] = (), search: Sequence[Path] = SEARCH
) -> DictConfig:
    """Merge experiments (names or YAML files) left to right, then overrides (`a.b=1`, `--a.b=1`).

    Example:
        >>> config = load(["rfnet", "medmap", "smoke", "net.width=8"])
        >>> nodes = check(config)
        >>> task = build(nodes["task"])
    """
    targets.allow(allow)
    return reach.guarded(merge.merge(words, search, _small))


def _small(tree: merge.Tree) -> merge.Tree:
    """Give the arguments that make a network small; one that does not say them keeps its own."""
    check_names(tree)  # before torch is imported
    target = tree["net"].get("_target_")
    small = target and getattr(targets.find_class(target, "net._target_"), "small", None)
    return dict(small()) if small else {}


def check(
    config: DictConfig, *, allow: Collection[str] = (), supplied: Collection[str] = ()
) -> dict[str, Any]:
    """Find whatever is wrong before anything is built; give each section as `build` takes it.

    Args:
        config: a whole experiment.
        allow: packages that `_target_` may name besides the usual ones.
        supplied: keys that the caller gives to `build`, as `logger.*.save_dir`; they may miss here.
    """
    targets.allow(allow)
    for name in config:
        if name not in SECTIONS:
            raise ConfigError(f"unknown key {str(name)!r}; {did_you_mean(str(name), SECTIONS)}")
    check_names(config)
    reader = _Reader(supplied)
    return {name: _section(config, name, reader) for name in SECTIONS}


def check_names(node: Any, key: str = "") -> None:
    """Find misspelt keys by the sources of the classes, before one of them is imported."""
    tree = OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node
    if isinstance(tree, list):
        tree = dict(enumerate(tree))
    if not isinstance(tree, dict):
        return
    target = str(tree.get("_target_", ""))
    # A class that is there already is asked itself, in the form in which it was loaded.
    is_read = targets.is_allowed(target) and target.rpartition(".")[0] not in sys.modules
    takes = source.arguments(target) if is_read else None
    for name, value in tree.items():
        if takes is not None and name not in (*takes, *_OWN_KEYS):
            raise _unknown(join(key, name), takes, target.rpartition(".")[2])
        check_names(value, join(key, name))


def build(node: Any, **extra: Any) -> Any:
    """Build a node, checked or as YAML has it, with what it holds; `extra` arguments win.

    A mapping or a list gives the same of built things, `_partial_: true` a `functools.partial`.
    """
    if isinstance(node, dict) and "_target_" in node:
        node = reach.guarded(node)
    if OmegaConf.is_config(node):
        key = _key(node)
        node = _Reader([join(key, name) for name in extra]).value(node, key)
    return _make(replace(node, arguments=node.arguments | extra) if extra else node)


def as_yaml(config: DictConfig) -> str:
    """Write the merged experiment as YAML, references such as ${net} as they are."""
    return OmegaConf.to_yaml(config, resolve=False)


def _section(config: DictConfig, name: str, reader: "_Reader") -> Any:
    if name in OPTIONAL and config.get(name) is None:
        return {} if name in MAPPINGS else None
    if name not in config.keys() or OmegaConf.is_missing(config, name):  # noqa: SIM118
        raise ConfigError(
            f"{name} has no value yet; name an experiment that sets it, as in: bts train a2fseg"
        )
    value = reader.child(config, name, name)
    if name == "seed":
        return _fit(value, int, name)
    if name not in MAPPINGS:
        return _require_kind(value, name, SECTIONS[name])
    if not isinstance(value, dict):
        raise ConfigError(f"{name}: expected a mapping from names to nodes")
    for entry, node in value.items():
        others = [other for other in value if isinstance(value[other], Node)]
        if isinstance(node, dict) and get_close_matches(entry, others, n=1):
            hint = did_you_mean(entry, others)
            raise ConfigError(f"{name}.{entry} needs a _target_; {hint}")
        _require_kind(node, f"{name}.{entry}", SECTIONS[name])
    return value


def _key(node: Any) -> str:
    return str(node._get_full_key(None))


class _Reader:
    """One reading of an experiment into plain Python, with a `Node` for each that has a class.

    What several nodes refer to is read once, and found again by its key.

    Args:
        supplied: patterns of keys that the caller gives, so that they may be missing.
    """

    def __init__(self, supplied: Collection[str]) -> None:
        self._supplied = supplied
        self._read: dict[str, Any] = {}
        self._via: list[str] = []

    def child(self, container: Any, name: Any, key: str) -> Any:
        """Read what stands under a name, behind a reference too."""
        if OmegaConf.is_missing(container, name):
            raise ConfigError(f"{key} has no value yet")
        try:
            value = container[name]
        except OmegaConfBaseException as error:
            raw = str(OmegaConf.to_container(container, resolve=False)[name])  # type: ignore[index]
            if isinstance(error.__cause__, ConfigError):
                raise ConfigError(f"{key}={raw}: {error.__cause__}") from error
            refers_to = re.match(r"\$\{([\w]+)", raw)
            lost = isinstance(error, InterpolationKeyError) and refers_to
            hint = f"; {did_you_mean(refers_to[1], SECTIONS)}" if lost and refers_to else ""
            raise ConfigError(f"{key}={raw}: {str(error).splitlines()[0]}{hint}") from error
        if not (OmegaConf.is_config(value) and OmegaConf.is_interpolation(container, name)):
            return self.value(value, key)
        key = _key(value)  # what is wrong there must be mended where it was written
        if key in self._via:
            raise ConfigError(f"{key} refers to itself: {' → '.join((*self._via, key))}")
        self._via.append(key)
        found = self.value(value, key)
        self._via.pop()
        return found

    def value(self, value: Any, key: str) -> Any:
        """Read a value that stands at a key."""
        if OmegaConf.is_list(value):
            return [self.child(value, i, join(key, i)) for i in range(len(value))]
        if not OmegaConf.is_dict(value):
            if isinstance(value, str) and "\0" in value:
                raise ConfigError(f"{key}={value}: no name holds a NUL")
            return value
        if key not in self._read:
            if "_target_" in value.keys():  # noqa: SIM118
                self._read[key] = self._node(value, key)
            else:
                self._read[key] = {n: self.child(value, n, join(key, n)) for n in value}
        return self._read[key]

    def _node(self, value: Any, key: str) -> Node:
        target = self.child(value, "_target_", key)
        cls = targets.find_class(target, join(key, "_target_"))
        is_partial = _fit(value.get("_partial_", False), bool, join(key, "_partial_"))
        takes = signature(cls)
        arguments = {}
        for name in map(str, value):
            if name in _OWN_KEYS:
                continue
            path = join(key, name)
            known = takes.arguments.get(name)
            # One that is not listed may be handed on by an open constructor, unless one is near.
            is_near = get_close_matches(name, takes.arguments, n=1, cutoff=0.8)
            if known is None and (not takes.is_open or is_near):
                raise _unknown(path, takes.arguments, cls.__name__)
            item = self.child(value, name, path)
            arguments[name] = _fit(item, known.annotation, path) if known else item
            _require_typed(cls, known.annotation if known else Any, item, path)
        if not is_partial:
            self._require_complete(cls, arguments, key)
        if any(targets.is_kind(cls, kind) for kind in reach.WRITERS):
            is_logger = targets.is_kind(cls, SECTIONS["logger"] or "")
            reach.check_texts(arguments, key, is_logger=is_logger)
        return Node(key, cls, arguments, is_partial)

    def _require_complete(self, cls: type, given: Collection[str], key: str) -> None:
        for name, argument in signature(cls).arguments.items():
            path = join(key, name)
            is_supplied = any(fnmatch(path, pattern) for pattern in self._supplied)
            if argument.default is REQUIRED and name not in given and not is_supplied:
                is_made_later = any(targets.is_kind(cls, kind) for kind in _MADE_LATER)
                advice = "; add `_partial_: true`, it is made later" if is_made_later else ""
                wanted = f"{cls.__name__} needs {describe(argument.annotation)}"
                raise ConfigError(f"{path} has no value yet; {wanted}{advice}")


def _unknown(path: str, takes: Iterable[str], owner: str) -> ConfigError:
    before, _, name = path.rpartition(".")
    near = get_close_matches(name.lower(), takes, n=1)
    listed = f"{owner} takes {', '.join(takes) or 'nothing'}"
    return ConfigError(
        f"unknown key '{path}'; {f'did you mean {before}.{near[0]}?' if near else listed}"
    )


def _require_kind(value: Any, key: str, kind: str | None) -> Any:
    if not isinstance(value, Node):
        raise ConfigError(f"{key} needs a _target_, the class to build")
    if value.is_partial:
        raise ConfigError(f"{key}._partial_: a factory is of no use here; take it away")
    if kind is not None and not targets.is_kind(value.cls, kind):
        raise ConfigError(f"{key}={value.cls.__name__}: expected a {kind}")
    return value


def _require_typed(cls: type, annotation: Any, item: Any, path: str) -> None:
    """Let no class into a place of which its owner does not say what it takes.

    A user's own classes, which the command line allows, may do without annotations.
    """
    is_foreign = cls.__module__.partition(".")[0] not in targets.PACKAGES
    if is_foreign or not is_untyped(annotation):
        return
    for node in nodes_in(item):
        raise ConfigError(f"{path}: {cls.__name__} does not say what it takes here; got {node}")


def _fit(value: Any, annotation: Any, key: str) -> Any:
    try:
        return fit(value, annotation)
    except MisfitError:
        wanted = f"expected {describe(annotation)}"
    if isinstance(value, Node):
        got = f"{'a' if value.is_partial else 'an object of'} {value}"
        raise ConfigError(f"{key}: {wanted}, got {got}; `_partial_: true` makes a factory")
    if isinstance(value, dict):
        raise ConfigError(f"{key}: {wanted}, got a mapping without _target_")
    words = options(annotation)
    meant = f"; {did_you_mean(value, words)}" if words and isinstance(value, str) else ""
    raise ConfigError(f"{key}={value}: {wanted}, got {type(value).__name__}{meant}")


def _make(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _make(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_make(item) for item in value)
    if not isinstance(value, Node):
        return value
    arguments = _make(value.arguments)
    if value.is_partial:
        return functools.partial(value.cls, **arguments)
    try:
        return value.cls(**arguments)
    except UserError:
        raise
    except Exception as error:
        # What a constructor refuses is the user's to mend; the rest is ours, with its traceback.
        is_refusal = isinstance(error, ValueError | TypeError | ImportError)
        if is_refusal or type(error).__name__ == "MisconfigurationException":
            raise ConfigError(f"{value.key}: {value.cls.__name__}: {one_line(error)}") from error
        raise
