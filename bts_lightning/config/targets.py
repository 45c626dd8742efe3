"""Find the class that a `_target_` names, and refuse everything that could run other code.

A configuration may come from a stranger: a run folder, a supplement, a sweep. It must not be able
to call `os.system` or `torch.load`. So a target is a class, its package is allowed, and it derives
from a kind of thing that an experiment is made of. Packages hold more classes than those, and some
start processes or write when they are built, ours too; so by default a class cannot be named.
"""

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterable
from types import ModuleType

from bts_lightning.config import reach
from bts_lightning.errors import ConfigError, did_you_mean

OURS = "bts_lightning"
PACKAGES = (OURS, "torch", "lightning", "torchio", "torchmetrics")

# Public places of the base classes. A class that derives from one has loaded that place already,
# so nothing heavy is imported to look.
KINDS = (
    "torch.nn.Module",
    "torch.optim.Optimizer",
    "torch.optim.lr_scheduler.LRScheduler",
    "lightning.pytorch.Trainer",
    "lightning.pytorch.LightningDataModule",
    "lightning.pytorch.callbacks.Callback",
    "lightning.pytorch.loggers.Logger",
    "lightning.pytorch.strategies.Strategy",
    "lightning.pytorch.profilers.Profiler",
    "torchio.Transform",
    "torchio.data.PatchSampler",
    "torchmetrics.Metric",
    "bts_lightning.availability.Availability",
    "bts_lightning.data.transform.Transform",
    "bts_lightning.distillation.terms.Term",
    "bts_lightning.inference.protocol.Protocol",
)
# Among the trusted packages `//HOST` is a server, which `--allow-host` trusts.
HOST = "//"

_allowed_by_user: set[str] = set()


def allow(packages: Iterable[str]) -> None:
    """Accept classes of these packages too in this process; they may lie in the current folder.

    Args:
        packages: names, and for a server that an experiment may name `//HOST`.
    """
    for package in packages:
        if package.startswith(HOST):
            reach.allow_host(package.removeprefix(HOST))
            continue
        if not package.isidentifier():
            raise ConfigError(f"--allow {package}: give the name of a top package, as mypackage")
        _allowed_by_user.add(package)
    # At the end, so that a file in the current folder cannot stand in for an installed package.
    if _allowed_by_user and "" not in sys.path:
        sys.path.append("")


def find_class(target: object, key: str) -> type:
    """Give the class that `target` names; `key` is where the configuration names it."""
    parts = target.split(".") if isinstance(target, str) else []
    if len(parts) < 2 or not all(part.isidentifier() and part[0] != "_" for part in parts):
        raise ConfigError(
            f"{key}={target!r}: expected the full public name of a class, as torch.optim.AdamW"
        )
    _refuse_package(parts[0], f"{key}={target}")
    module, rest = _import_along(parts, key)
    if not rest:
        raise ConfigError(
            f"{key}={target}: this is a module; its classes are {', '.join(_classes(module))}"
        )
    found = getattr(module, rest[0], None)
    if len(rest) > 1 or found is None:
        inside = [one.name for one in pkgutil.iter_modules(getattr(module, "__path__", []))]
        what, names = ("module", inside) if len(rest) > 1 else ("class", _classes(module))
        hint = did_you_mean(rest[0], [name for name in names if name[0] != "_"])
        raise ConfigError(
            f"{key}={target}: module {module.__name__} has no {what} {rest[0]!r}; {hint}"
        )
    if not isinstance(found, type):
        raise ConfigError(
            f"{key}={target}: this is a {type(found).__name__}; only classes can be built"
        )
    # What a module imported for itself, as `torch.nn.Any`, has its home elsewhere.
    _refuse_package(_root(found), f"{key}={target} is {found.__module__}.{found.__qualname__} and")
    if not any(is_kind(found, kind) for kind in KINDS):
        kinds = dict.fromkeys(kind.rpartition(".")[2] for kind in KINDS)
        raise ConfigError(
            f"{key}={target}: not a kind of thing that an experiment is built from; these are "
            f"{', '.join(kinds)}"
        )
    if inspect.isabstract(found):
        raise ConfigError(f"{key}={target}: this class is abstract; name one that derives from it")
    return found


def is_kind(cls: type, kind: str) -> bool:
    """Say whether a class derives from the one at a public place, without importing that place."""
    place, _, name = kind.rpartition(".")
    base = getattr(sys.modules.get(place), name, None)
    return base is not None and issubclass(cls, base)


def is_allowed(target: str) -> bool:
    """Say whether the package of a class is trusted."""
    return target.partition(".")[0] in {*PACKAGES, *_allowed_by_user}


def _refuse_package(package: str, subject: str) -> None:
    if not is_allowed(package):
        allowed = ", ".join([*PACKAGES, *sorted(_allowed_by_user)])
        raise ConfigError(
            f"{subject} comes from package {package!r}; allowed are {allowed}. "
            f"If you trust it: --allow {package}"
        )


def _import_along(parts: list[str], key: str) -> tuple[ModuleType, list[str]]:
    """Import as far as the parts are modules; never touch an attribute on the way."""
    module: ModuleType | None = None
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[:count])
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise ConfigError(f"{key}: {name} cannot be imported: {error}") from error
            if module is None:
                raise ConfigError(f"{key}: there is no package {name!r}") from error
            return module, parts[count - 1 :]
        # A user's own module may fail in any way; the line must name it instead of ours.
        except Exception as error:
            raise ConfigError(
                f"{key}: importing {name} failed: {type(error).__name__}: {error}"
            ) from error
    assert module is not None
    return module, []


def _classes(module: ModuleType) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and _root(value) == module.__name__.partition(".")[0]
    ]


def _root(cls: type) -> str:
    return cls.__module__.partition(".")[0]
