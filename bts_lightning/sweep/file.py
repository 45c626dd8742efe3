"""A sweep's YAML in W&B's own format, and the command of a trial that follows from it."""

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bts_lightning import config as configuration
from bts_lightning.config.merge import SEARCH, is_override
from bts_lightning.errors import ConfigError, did_you_mean
from bts_lightning.sweep.hyperband import Hyperband, read_hyperband
from bts_lightning.sweep.space import Parameter, read_parameters

Method = Literal["grid", "random", "bayes"]
Goal = Literal["minimize", "maximize"]
# Where the words of the command line go; W&B fills in the other macros.
EXPERIMENT = "${experiment}"
COMMAND = (
    *("${env}", "${interpreter}", "-m", "${program}", "train"),
    *(EXPERIMENT, "${args_no_hyphens}"),
)
# The top level of W&B's format.
_KEYS = (
    *("apiVersion", "command", "controller", "description", "early_terminate", "entity", "kind"),
    *("method", "metric", "name", "parameters", "program", "project", "run_cap"),
)
_FOLDER = "sweeps"
_ANY = "default"
_ENVVAR = re.compile(r"\$\{envvar:(\w+)\}")


@dataclass(frozen=True)
class Sweep:
    """A sweep that was read and checked; `tree` is the file as W&B wants it."""

    name: str
    file: Path
    tree: Mapping[str, Any]
    method: Method
    metric: str
    goal: Goal
    target: float | None
    parameters: tuple[Parameter, ...]
    command: tuple[str, ...]
    stopping: Hyperband | None
    run_cap: int | None

    @property
    def sign(self) -> int:
        """Give the factor that makes more better."""
        return 1 if self.goal == "maximize" else -1

    def trial_command(self, words: Sequence[str], values: Mapping[str, Any]) -> list[str]:
        """Write the command of a trial, its macros filled in as W&B's agent does."""
        flags = [f"{name}={value}" for name, value in values.items()]
        yes = [n for n, v in values.items() if v is True]
        rest = [f"--{n}={v}" for n, v in values.items() if not isinstance(v, bool)]
        filled: dict[str, list[str]] = {
            "env": ["/usr/bin/env"] if os.name == "posix" else [],
            "interpreter": [sys.executable],
            "program": [str(self.tree.get("program", "bts_lightning"))],
            "experiment": list(words),
            "args": [f"--{flag}" for flag in flags],
            "args_no_hyphens": flags,
            "args_no_equals": [x for n, v in values.items() for x in (f"--{n}", str(v))],
            "args_no_boolean_flags": [*rest, *(f"--{name}" for name in yes)],
            "args_append_hydra": [f"+{flag}" for flag in flags],
            "args_override_hydra": [f"++{flag}" for flag in flags],
            "args_json": [json.dumps(dict(values))],
        }
        command: list[str] = []
        for part in self.command:
            text = _ENVVAR.sub(lambda match: os.environ.get(match[1], match[1]), part)
            whole = re.fullmatch(r"\$\{(\w+)\}", text)
            command += filled.get(whole[1], []) if whole else [text]
        return self._safe(command)

    def for_wandb(self, words: Sequence[str], run_cap: int | None) -> dict[str, Any]:
        """Give the file for W&B's server, with the experiment's words in its command."""
        command: list[str] = []
        for part in self.command:
            command += words if part == EXPERIMENT else [part]
        command = self._safe(command)
        tree = {"program": "bts_lightning", "name": self.name, **self.tree, "command": command}
        return tree if run_cap is None else tree | {"run_cap": run_cap}

    def _safe(self, command: list[str]) -> list[str]:
        """Let our own trials import nothing from the current folder; other programs may need it."""
        ours = [("-m", "bts_lightning")]
        if self.tree.get("program", "bts_lightning") == "bts_lightning":
            ours.append(("-m", "${program}"))
        found = [i for i, pair in enumerate(pairwise(command)) if pair in ours]
        return [*command[: found[0]], "-P", *command[found[0] :]] if found else command


def find_sweep(
    given: str | None, words: Sequence[str], search: Sequence[Path] = SEARCH
) -> tuple[Path, str]:
    """Find the file of a sweep by path or name, or that of the last experiment that has one."""
    folders = [folder / _FOLDER for folder in search]
    named = {f.stem: f for folder in reversed(folders) for f in sorted(folder.glob("*.yaml"))}
    if given is not None:
        if Path(given).is_file():
            return Path(given), Path(given).stem
        if given not in named:
            raise ConfigError(f"no sweep is named {given!r}; {did_you_mean(given, named)}")
        return named[given], given
    names = [Path(word).stem for word in words if not is_override(word)]
    # A mix-in stands behind its experiment and is what one wants to know about.
    chosen = next((name for name in reversed(names) if name in named), _ANY)
    if chosen not in named:
        raise ConfigError(f"there is no {_FOLDER}/{_ANY}.yaml; name a file with --sweep")
    return named[chosen], chosen


def read_sweep(file: Path, name: str | None = None) -> Sweep:
    """Read a sweep and find whatever is wrong with it."""
    try:
        # OmegaConf's YAML knows that 1e-4 is a number.
        tree = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except (OSError, yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: expected a mapping with {', '.join(_KEYS)}")
    for key in tree:
        if key not in _KEYS:
            raise ConfigError(f"{file}: unknown key {key!r}; {did_you_mean(str(key), _KEYS)}")
    method: Any = tree.get("method")
    if method not in get_args(Method):
        raise ConfigError(f"{file}: method is {method}; choose {', '.join(get_args(Method))}")
    parameters = read_parameters(tree.get("parameters"), str(file))
    if method == "grid":
        try:
            parameters = tuple(parameter.as_choices() for parameter in parameters)
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from error
    metric = tree.get("metric")
    if not isinstance(metric, dict) or "name" not in metric:
        raise ConfigError(
            f"{file}: metric needs a name, as {{name: val/dice/mean, goal: maximize}}"
        )
    goal = metric.get("goal", "minimize")
    if goal not in get_args(Goal):
        raise ConfigError(f"{file}: metric.goal is {goal}; choose {', '.join(get_args(Goal))}")
    target = metric.get("target")
    if target is not None and (isinstance(target, bool) or not isinstance(target, int | float)):
        raise ConfigError(f"{file}: metric.target is {target}; give a number")
    run_cap = tree.get("run_cap")
    if run_cap is not None and (not isinstance(run_cap, int) or run_cap < 1):
        raise ConfigError(f"{file}: run_cap is {run_cap}; give a whole number from 1")
    command = tree.get("command", list(COMMAND))
    if not isinstance(command, list) or not command:
        raise ConfigError(f"{file}: command must be a list, as {json.dumps(COMMAND)}")
    return Sweep(
        name=name or file.stem,
        file=file,
        tree={str(key): value for key, value in tree.items()},
        method=method,
        metric=str(metric["name"]),
        goal=goal,
        target=None if target is None else float(target),
        parameters=parameters,
        command=tuple(str(part) for part in command),
        stopping=read_hyperband(tree.get("early_terminate"), str(file)),
        run_cap=run_cap,
    )


def check_sweep(sweep: Sweep, words: Sequence[str], allow: Sequence[str] = ()) -> None:
    """Try values of all parameters with the experiment: a misspelt key must not start a sweep."""
    if EXPERIMENT not in sweep.command:
        if words:
            raise ConfigError(
                f"{sweep.file}: its command has no {EXPERIMENT}, so there is no place for "
                f"{' '.join(words)}; add one, or give no experiment"
            )
        return  # a program of somebody else
    middle = [f"{p.name}={_middle(p)}" for p in sweep.parameters]
    for parameter in sweep.parameters:
        for value in parameter.examples():
            tried = [word for word in middle if not word.startswith(f"{parameter.name}=")]
            config = configuration.load([*words, *tried, f"{parameter.name}={value}"], allow=allow)
            try:
                configuration.check(config, supplied=configuration.SUPPLIED)
            except ConfigError as error:
                raise ConfigError(f"{sweep.file}: {error}") from error


def _middle(parameter: Parameter) -> Any:
    examples = parameter.examples()
    return examples[len(examples) // 2]
