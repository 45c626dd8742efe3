"""How far an experiment reaches: its names stay in the run folder, and it chooses no server.

A configuration may come from a stranger. What callbacks, loggers, profilers and strategies are
given becomes names of files and addresses, so no text of theirs leaves the run folder, names a
server or brings credentials; and only a few variables of the environment can be read.
"""

import os
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from omegaconf import DictConfig, OmegaConf

from bts_lightning.config.merge import join
from bts_lightning.errors import ConfigError

# What `${oc.env:NAME}` may read: where data lie, and what tells a job from its neighbours.
ENVIRONMENT = ("DATA", "SLURM_*", "BTS_*")
# Slurm's token for its web interface is a secret.
_SECRET = ("SLURM_JWT",)
_MARK = "bts_lightning"

WRITERS = (
    "lightning.pytorch.callbacks.Callback",
    "lightning.pytorch.loggers.Logger",
    "lightning.pytorch.profilers.Profiler",
    "lightning.pytorch.strategies.Strategy",
)
# Keys of loggers, at any depth: `settings.base_url`, `tracking_uri`, `proxies.https`.
_ADDRESS = re.compile(r"(.*_)?(url|uri|host|proxy|proxies|server|endpoint|address)")
_CREDENTIAL = re.compile(r"(.*_)?(key|token|password|secret|credentials)(_.*)?")

_allowed_hosts: set[str] = set()


def allow_host(host: str) -> None:
    """Let configurations of this process name a server."""
    if not _host(host):
        raise ConfigError(f"--allow-host {host}: give the name of a server, as wandb.example.org")
    _allowed_hosts.add(_host(host))


def guarded(tree: Any) -> DictConfig:
    """Make a configuration that sees only the listed variables of the environment."""
    # Again each time: OmegaConf.clear_resolvers() takes it away.
    # OmegaConf 2.4 gives the function another name.
    register = getattr(OmegaConf, "register_resolver", OmegaConf.register_new_resolver)
    register("oc.env", _variable, replace=True)
    config: DictConfig = OmegaConf.create(tree, flags={_MARK: True})
    return config


def check_texts(arguments: Any, key: str, *, is_logger: bool) -> None:
    """Refuse texts that leave the run folder, and in a logger those that say where to send."""
    for path, text in _texts(arguments):
        where = join(key, path)
        names = path.split(".")
        if is_logger and any(_CREDENTIAL.fullmatch(name) for name in names):
            raise ConfigError(f"{where}: credentials do not belong here; log in, or set a variable")
        is_address = "://" in text or any(_ADDRESS.fullmatch(name) for name in names)
        if is_logger and is_address:
            _check_host(text, where)
        elif _leaves(text):
            raise ConfigError(
                f"{where}={text}: leads out of the run folder; give a name without /… at its "
                "beginning, ~, :// and .."
            )


def _check_host(text: str, where: str) -> None:
    host = _host(text)
    if host not in _allowed_hosts:
        raise ConfigError(
            f"{where}={text}: an experiment does not choose where your key and your results go; "
            "the server comes from WANDB_BASE_URL or `wandb login --host`. "
            f"If you trust this one: --allow-host {host or 'HOST'}"
        )


def _host(text: str) -> str:
    try:
        return (urlsplit(text if "://" in text else f"//{text}").hostname or "").lower()
    except ValueError:
        return ""


def _leaves(text: str) -> bool:
    # The template of a file name becomes part of the path as it is.
    return text.startswith(("/", "~")) or "://" in text or ".." in PurePosixPath(text).parts


def _texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield each text with its key; nodes inside have been looked at by themselves."""
    if isinstance(value, str | Path):
        yield path, str(value)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _texts(item, join(path, name))
    elif isinstance(value, list | tuple | set | frozenset):
        for i, item in enumerate(value):
            yield from _texts(item, join(path, i))


_NONE = object()


def _variable(name: Any, default: Any = _NONE, *, _root_: Any) -> Any:
    """Read a variable as OmegaConf's own `oc.env` does; for an experiment only a listed one."""
    name = str(name)
    is_listed = any(fnmatchcase(name, one) for one in ENVIRONMENT) and name not in _SECRET
    if _root_._get_flag(_MARK) and not is_listed:
        raise ConfigError(
            f"an experiment may read {', '.join(ENVIRONMENT)} of the environment, and {name} may "
            "hold a secret; let your shell fill it in, as data.root=$HOME/data"
        )
    if name in os.environ:
        return os.environ[name]
    if default is _NONE:
        raise KeyError(f"Environment variable '{name}' not found")
    return None if default is None else str(default)
