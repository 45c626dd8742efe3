"""What a parameter of a sweep can be, and how a value is drawn: seven of W&B's distributions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from bts_lightning.errors import ConfigError

if TYPE_CHECKING:
    from optuna.trial import Trial

# What each distribution takes, and W&B's value for what may be left out.
DISTRIBUTIONS = {
    "constant": ("value",),
    "categorical": ("values",),
    "int_uniform": ("min", "max"),
    "uniform": ("min", "max"),
    "q_uniform": ("min", "max", "q"),
    "log_uniform_values": ("min", "max"),
    "normal": ("mu", "sigma"),
}
_USUAL = {"q": 1, "mu": 0.0, "sigma": 1.0}
# Keeps the tails of a normal distribution finite.
_EDGE = 1e-6
# More cells than this nobody trains; the file means another method.
_LARGEST_GRID = 10_000


@dataclass(frozen=True)
class Parameter:
    """One parameter of a sweep: its key in the experiment and how values are drawn.

    `numbers` holds bounds and shape under W&B's names, `choices` the values of a categorical one.
    """

    name: str
    distribution: str
    numbers: Mapping[str, float]
    choices: tuple[Any, ...] = ()

    @property
    def is_logarithmic(self) -> bool:
        """Say whether it is drawn, and should be drawn upon paper, on a logarithmic scale."""
        return self.distribution == "log_uniform_values"

    def suggest(self, trial: "Trial") -> Any:
        """Let Optuna choose, on the scale on which the distribution is even."""
        if self.distribution == "constant":
            return self.choices[0]
        if self.distribution == "categorical":
            labels = [label(value) for value in self.choices]
            return self.choices[labels.index(trial.suggest_categorical(self.name, labels))]
        if self.distribution in ("normal", "q_uniform"):
            # Optuna does not know these: it chooses how much of the mass lies below.
            return self.quantile(trial.suggest_float(self.name, _EDGE, 1 - _EDGE))
        low, high = self.numbers["min"], self.numbers["max"]
        if self.distribution == "int_uniform":
            return trial.suggest_int(self.name, int(low), int(high))
        return trial.suggest_float(self.name, low, high, log=self.is_logarithmic)

    def quantile(self, share: float) -> Any:
        """Give the value with this share of the probability below it."""
        numbers = self.numbers
        if self.choices:
            return self.choices[min(int(share * len(self.choices)), len(self.choices) - 1)]
        if self.distribution == "normal":
            return NormalDist(numbers["mu"], numbers["sigma"]).inv_cdf(share)
        low, high = numbers["min"], numbers["max"]
        if self.distribution == "int_uniform":
            return int(min(low + share * (high - low + 1) // 1, high))
        if self.is_logarithmic:
            return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        value = low + share * (high - low)
        return _rounded(value, numbers["q"]) if "q" in numbers else value

    def examples(self) -> list[Any]:
        """Give every choice, or values from the whole range, to try an experiment with."""
        if self.choices:
            return list(self.choices)
        return [self.quantile(share) for share in (_EDGE, 0.5, 1 - _EDGE)]

    def as_choices(self) -> "Parameter":
        """Turn it into a list of values, as a grid needs."""
        numbers = self.numbers
        if self.distribution in ("constant", "categorical"):
            return self
        if self.distribution == "int_uniform":
            values = list(range(int(numbers["min"]), int(numbers["max"]) + 1))
        elif self.distribution == "q_uniform":
            steps = round((numbers["max"] - numbers["min"]) / numbers["q"])
            shares = [step / max(steps, 1) for step in range(steps + 1)]
            values = sorted({self.quantile(share) for share in shares})
        else:
            raise ConfigError(
                f"parameters.{self.name}: a grid needs values, int_uniform or q_uniform, not "
                f"{self.distribution}; list values, or use method random or bayes"
            )
        return Parameter(self.name, "categorical", {}, tuple(values))


def read_parameters(section: Any, source: str) -> tuple[Parameter, ...]:
    """Read the `parameters` of a sweep; nested ones get the dotted names of the experiment."""
    if not isinstance(section, dict) or not section:
        raise ConfigError(f"{source}: parameters is empty; name keys, as net.width: {{values: []}}")
    found: list[Parameter] = []
    for name, entry in section.items():
        where = f"{source}: parameters.{name}"
        if not isinstance(entry, dict):
            raise ConfigError(f"{where} is {entry}; write {{value: {entry}}} for a constant")
        if set(entry) == {"parameters"}:
            nested = entry["parameters"]
            if not isinstance(nested, dict) or not nested:
                raise ConfigError(f"{where}.parameters is {nested}; name keys below {name}")
            inner = {f"{name}.{key}": value for key, value in nested.items()}
            found += read_parameters(inner, source)
        else:
            found.append(_read(str(name), entry, where))
    return tuple(found)


def cells(parameters: tuple[Parameter, ...]) -> list[dict[str, str]]:
    """List the labels of every combination of choices, the last parameter changing fastest."""
    count = math.prod(len(parameter.choices) for parameter in parameters)
    if count > _LARGEST_GRID:
        raise ConfigError(f"the grid has {count} cells; use method random or bayes")
    grid: list[dict[str, str]] = [{}]
    for parameter in parameters:
        if parameter.distribution != "constant":
            values = [label(value) for value in parameter.choices]
            grid = [cell | {parameter.name: value} for cell in grid for value in values]
    return grid


def label(value: Any) -> str:
    """Name a choice; Optuna's choices cannot be lists, and 1 equals True."""
    return str(value)


def _read(name: str, entry: dict[str, Any], where: str) -> Parameter:
    kind = str(entry["distribution"] if "distribution" in entry else _implied(entry, where))
    if kind not in DISTRIBUTIONS:
        raise ConfigError(
            f"{where}: no distribution here is named {kind!r}; choose {', '.join(DISTRIBUTIONS)}"
        )
    takes = DISTRIBUTIONS[kind]
    for key in entry:
        if key not in takes and key != "distribution":
            raise ConfigError(f"{where}: {kind} takes {', '.join(takes)}, not {key!r}")
    given = {**{key: _USUAL[key] for key in takes if key in _USUAL}, **entry}
    for key in takes:
        if key not in given:
            raise ConfigError(f"{where}: {kind} needs {key}")
    if kind == "constant":
        return Parameter(name, kind, {}, (given["value"],))
    if kind == "categorical":
        return Parameter(name, kind, {}, _choices(given["values"], where))
    numbers = {key: _number(given[key], f"{where}.{key}") for key in takes}
    _check_range(kind, numbers, where)
    return Parameter(name, kind, numbers)


def _implied(entry: Mapping[str, Any], where: str) -> str:
    """Name the distribution that W&B takes when none is given."""
    if "values" in entry:
        return "categorical"
    if "value" in entry:
        return "constant"
    if "min" in entry and "max" in entry:
        whole = [isinstance(_number(entry[end], f"{where}.{end}"), int) for end in ("min", "max")]
        if whole[0] != whole[1]:
            raise ConfigError(f"{where}: write min and max both as 1 or both as 1.0")
        return "int_uniform" if all(whole) else "uniform"
    raise ConfigError(f"{where}: give value, values, or min and max, or name a distribution")


def _choices(values: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{where}.values is {values}; give a list of at least one value")
    if len({label(value) for value in values}) < len(values):
        raise ConfigError(f"{where}.values holds a value twice")
    return tuple(values)


def _number(value: Any, where: str) -> float:
    try:
        number = value if isinstance(value, int | float) else float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{where} is {value!r}; give a number") from None
    if isinstance(value, bool) or not math.isfinite(number):
        raise ConfigError(f"{where} is {value}; give a finite number")
    return number


def _check_range(kind: str, numbers: Mapping[str, float], where: str) -> None:
    if "min" in numbers and not numbers["min"] < numbers["max"]:
        raise ConfigError(f"{where}: min {numbers['min']} is not below max {numbers['max']}")
    if kind == "log_uniform_values" and numbers["min"] <= 0:
        raise ConfigError(f"{where}: min must be above 0 for a logarithm, it is {numbers['min']}")
    if kind == "int_uniform" and not all(float(n).is_integer() for n in numbers.values()):
        raise ConfigError(f"{where}: int_uniform needs whole numbers")
    for key in ("q", "sigma"):
        if numbers.get(key, 1) <= 0:
            raise ConfigError(f"{where}: {key} must be above 0, it is {numbers[key]}")


def _rounded(value: float, step: float) -> float:
    """Round to a multiple; whole steps give whole numbers, others lose the noise of binary."""
    times = round(value / step)
    return times * step if isinstance(step, int) else round(times * step, 12)
