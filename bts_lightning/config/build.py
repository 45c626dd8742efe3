"""Load, check and build an experiment; the signature of a constructor is the schema of its node."""

import functools
import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from bts_lightning.config import merge, targets
from bts_lightning.config.merge import MAPPINGS, OPTIONAL, SEARCH, SECTIONS, join, one_line
from bts_lightning.config.schema import (
    REQUIRED,
    MisfitError,
    Plan,
    describe,
    fit,
    options,
    signature,
)
from bts_lightning.errors import ConfigError, UserError, did_you_mean

# Places inside the run's folder, filled in when it is built: no experiment has to name them.
SUPPLIED = ("logger.*.save_dir", "callbacks.*.dirpath")

# Made by the task once there are parameters, so an experiment gives factories of them.
_MADE_LATER = ("torch.optim.Optimizer", "torch.optim.lr_scheduler.LRScheduler")


def load(
    words: Sequence[str], *, allow: Collection[str] = (), search: Sequence[Path] = SEARCH
) -> DictConfig:
    """Merge experiments (names or YAML files) left to right, then overrides (`a.b=1`, `--a.b=1`).

    Example:
        >>> config = load(["rfnet", "medmap", "smoke", "net.width=8"])
        >>> check(config)
        >>> task = build(config.task)
    """
    targets.allow(allow)
    return OmegaConf.create(merge.merge(words, search))


def check(
    config: DictConfig, *, allow: Collection[str] = (), supplied: Collection[str] = ()
) -> None:
    """Find whatever is wrong before anything is built.

    Args:
        config: a whole experiment.
        allow: packages that `_target_` may name besides the usual ones.
        supplied: keys that the caller gives to `build`, as `logger.*.save_dir`; they may miss here.
    """
    targets.allow(allow)
    for name in config:
        if name not in SECTIONS:
            raise ConfigError(f"unknown key {str(name)!r}; {did_you_mean(str(name), SECTIONS)}")
    for name, kind in SECTIONS.items():
        if name in OPTIONAL and config.get(name) is None:
            continue
        if name not in config.keys() or OmegaConf.is_missing(config, name):  # noqa: SIM118
            raise ConfigError(
                f"{name} has no value yet; name an experiment that sets it, as in: bts train a2fseg"
            )
        value = _child(config, name, name, supplied)
        if name == "seed":
            _fit(value, int, name)
        elif name not in MAPPINGS:
            _require_kind(value, name, kind)
        elif isinstance(value, dict):
            for entry, node in value.items():
                others = [other for other in value if isinstance(value[other], Plan)]
                if isinstance(node, dict) and get_close_matches(entry, others, n=1):
                    hint = did_you_mean(entry, others)
                    raise ConfigError(f"{name}.{entry} needs a _target_; {hint}")
                _require_kind(node, f"{name}.{entry}", kind)
        else:
            raise ConfigError(f"{name}: expected a mapping from names to nodes")


def build(node: Any, **extra: Any) -> Any:
    """Build a node and what it holds; `extra` arguments win over those of the YAML.

    A mapping or a list gives the same of built things, `_partial_: true` a `functools.partial`.
    """
    if isinstance(node, dict | list):
        node = OmegaConf.create(node)
    key = _key(node)
    plan = _plan(node, key, [join(key, name) for name in extra])
    if extra and not isinstance(plan, Plan):
        raise TypeError(f"{key or 'the node'} has no _target_, so it takes no {', '.join(extra)}")
    return _make(plan, extra)


def as_yaml(config: DictConfig) -> str:
    """Write the merged experiment as YAML, references such as ${net} as they are."""
    return OmegaConf.to_yaml(config, resolve=False)


def _key(node: Any) -> str:
    return str(node._get_full_key(None)) if OmegaConf.is_config(node) else ""


def _plan(value: Any, key: str, supplied: Collection[str], via: tuple[str, ...] = ()) -> Any:
    """Turn a resolved value into plain Python, with a checked Plan for each node.

    Args:
        value: what stands there.
        key: where it stands.
        supplied: patterns of keys that the caller gives, so that they may be missing.
        via: the nodes that references have led to.
    """
    if OmegaConf.is_list(value):
        return [_child(value, i, join(key, i), supplied, via) for i in range(len(value))]
    if not OmegaConf.is_dict(value):
        return value
    if "_target_" not in value.keys():  # noqa: SIM118
        return {name: _child(value, name, join(key, name), supplied, via) for name in value}
    cls = targets.find_class(_child(value, "_target_", key, ()), join(key, "_target_"))
    is_partial = _fit(value.get("_partial_", False), bool, join(key, "_partial_"))
    takes = signature(cls).arguments
    arguments = {}
    for name in value:
        if name in ("_target_", "_partial_"):
            continue
        path = join(key, name)
        if name not in takes:
            _require_open(cls, str(name), path)
        item = _child(value, name, path, supplied, via)
        arguments[str(name)] = _fit(item, takes[name].annotation, path) if name in takes else item
    if not is_partial:
        _require_complete(cls, arguments, key, supplied)
    return Plan(key, cls, arguments, is_partial)


def _require_complete(
    cls: type, given: Collection[str], key: str, supplied: Collection[str]
) -> None:
    for name, argument in signature(cls).arguments.items():
        path = join(key, name)
        is_supplied = any(fnmatch(path, pattern) for pattern in supplied)
        if argument.default is REQUIRED and name not in given and not is_supplied:
            is_made_later = any(targets.is_kind(cls, kind) for kind in _MADE_LATER)
            advice = "; add `_partial_: true`, the task makes it later" if is_made_later else ""
            wanted = f"{cls.__name__} needs {describe(argument.annotation)}"
            raise ConfigError(f"{path} has no value yet; {wanted}{advice}")


def _child(
    container: Any, name: Any, key: str, supplied: Collection[str], via: tuple[str, ...] = ()
) -> Any:
    if OmegaConf.is_missing(container, name):
        raise ConfigError(f"{key} has no value yet")
    try:
        value = container[name]
    except OmegaConfBaseException as error:
        raw = OmegaConf.to_container(container, resolve=False)
        assert isinstance(raw, dict | list)
        refers_to = re.match(r"\$\{([\w]+)", str(raw[name]))
        lost = isinstance(error, InterpolationKeyError) and refers_to
        hint = f"; {did_you_mean(refers_to[1], SECTIONS)}" if lost and refers_to else ""
        text = str(error).splitlines()[0]
        raise ConfigError(f"{key}={raw[name]}: {text}{hint}") from error
    if OmegaConf.is_config(value) and OmegaConf.is_interpolation(container, name):
        key = _key(value)  # what is wrong there must be mended where it was written
        if key in via:
            raise ConfigError(f"{key} refers to itself: {' → '.join((*via, key))}")
        via = (*via, key)
    return _plan(value, key, supplied, via)


def _require_open(cls: type, name: str, path: str) -> None:
    """Refuse an argument that is not listed, unless the constructor is open and none is near."""
    takes = signature(cls)
    if takes.is_open and not get_close_matches(name, takes.arguments, n=1, cutoff=0.8):
        return
    prefix = path.removesuffix(name)
    near = get_close_matches(name.lower(), takes.arguments, n=1)
    meant = (
        f"did you mean {prefix}{near[0]}?"
        if near
        else f"{cls.__name__} takes {', '.join(takes.arguments) or 'nothing'}"
    )
    raise ConfigError(f"unknown key '{path}'; {meant}")


def _require_kind(value: Any, key: str, kind: str | None) -> None:
    if not isinstance(value, Plan):
        raise ConfigError(f"{key} needs a _target_, the class to build")
    if value.is_partial:
        raise ConfigError(f"{key}._partial_: a factory is of no use here; take it away")
    if kind is not None and not targets.is_kind(value.cls, kind):
        raise ConfigError(f"{key}={value.cls.__name__}: expected a {kind}")


def _fit(value: Any, annotation: Any, key: str) -> Any:
    try:
        return fit(value, annotation)
    except MisfitError:
        wanted = f"expected {describe(annotation)}"
    if isinstance(value, Plan):
        got = f"{'a' if value.is_partial else 'an object of'} {value}"
        raise ConfigError(f"{key}: {wanted}, got {got}; `_partial_: true` makes a factory")
    if isinstance(value, dict):
        raise ConfigError(f"{key}: {wanted}, got a mapping without _target_")
    words = options(annotation)
    meant = f"; {did_you_mean(value, words)}" if words and isinstance(value, str) else ""
    raise ConfigError(f"{key}={value}: {wanted}, got {type(value).__name__}{meant}")


def _make(value: Any, extra: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        return {name: _make(item, {}) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_make(item, {}) for item in value)
    if not isinstance(value, Plan):
        return value
    arguments = {name: _make(item, {}) for name, item in value.arguments.items()} | extra
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
