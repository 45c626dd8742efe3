"""The distributions of W&B's sweep format: what a parameter can be, and how one is drawn."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scipy import stats

from bts_lightning.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from optuna.trial import Trial

# What each distribution takes, with W&B's default or None where one must be given.
_BOUNDS: dict[str, float | None] = {"min": None, "max": None}
_GAUSS: dict[str, float | None] = {"mu": 0.0, "sigma": 1.0}
_SHAPE: dict[str, float | None] = {"a": 1.0, "b": 1.0}
DISTRIBUTIONS: dict[str, dict[str, float | None]] = {
    "constant": {"value": None},
    "categorical": {"values": None},
    "categorical_w_probabilities": {"values": None, "probabilities": None},
    "int_uniform": _BOUNDS,
    "uniform": _BOUNDS,
    "q_uniform": {**_BOUNDS, "q": 1},
    "log_uniform": _BOUNDS,  # bounds are natural logarithms
    "log_uniform_values": _BOUNDS,
    "q_log_uniform": {**_BOUNDS, "q": 1},
    "q_log_uniform_values": {**_BOUNDS, "q": 1},
    "inv_log_uniform": _BOUNDS,
    "inv_log_uniform_values": _BOUNDS,
    "normal": _GAUSS,
    "q_normal": {**_GAUSS, "q": 1},
    "log_normal": _GAUSS,
    "q_log_normal": {**_GAUSS, "q": 1},
    "beta": _SHAPE,
    "q_beta": {**_SHAPE, "q": 1},
}
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
        return "log" in self.distribution

    def suggest(self, trial: "Trial") -> Any:
        """Let Optuna choose, on the scale on which the distribution is even."""
        kind, numbers = self.distribution, self.numbers
        if kind == "constant":
            return self.choices[0]
        if kind == "categorical":
            labels = [label(value) for value in self.choices]
            return self.choices[labels.index(trial.suggest_categorical(self.name, labels))]
        if kind == "int_uniform":
            return trial.suggest_int(self.name, int(numbers["min"]), int(numbers["max"]))
        if kind == "uniform":
            return trial.suggest_float(self.name, numbers["min"], numbers["max"])
        if "log_uniform" in kind and "q" not in numbers:
            low, high = self._log_bounds()
            return trial.suggest_float(self.name, math.exp(low), math.exp(high), log=True)
        # Optuna knows no other distributions: it chooses how much of the mass lies below.
        return self.quantile(trial.suggest_float(self.name, _EDGE, 1 - _EDGE))

    def quantile(self, share: float) -> Any:
        """Give the value with this share of the probability below it."""
        kind, numbers = self.distribution, self.numbers
        if kind in ("constant", "categorical"):
            return self.choices[min(int(share * len(self.choices)), len(self.choices) - 1)]
        if kind == "categorical_w_probabilities":
            return self._weighted(share)
        if kind == "int_uniform":
            count = numbers["max"] - numbers["min"] + 1
            return int(min(numbers["min"] + share * count // 1, numbers["max"]))
        if "log_uniform" in kind:
            low, high = self._log_bounds()
            value = math.exp(low + share * (high - low))
        elif "uniform" in kind:
            value = numbers["min"] + share * (numbers["max"] - numbers["min"])
        elif "beta" in kind:
            value = float(stats.beta.ppf(share, numbers["a"], numbers["b"]))
        else:
            value = float(stats.norm.ppf(share, numbers["mu"], numbers["sigma"]))
            value = math.exp(value) if "log" in kind else value
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

    def _log_bounds(self) -> tuple[float, float]:
        """Give the range of the natural logarithm."""
        low, high = self.numbers["min"], self.numbers["max"]
        if self.distribution.endswith("_values"):
            return math.log(low), math.log(high)
        # W&B bounds the logarithm of 1/x here.
        return (-high, -low) if self.distribution.startswith("inv_") else (low, high)

    def _weighted(self, share: float) -> Any:
        weights = [self.numbers[str(i)] for i in range(len(self.choices))]
        below = 0.0
        for value, weight in zip(self.choices, weights, strict=True):
            below += weight / sum(weights)
            if share < below:
                return value
        return self.choices[-1]


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
        raise ConfigError(f"{where}: {kind!r} is no distribution; {_near(kind)}")
    takes = DISTRIBUTIONS[kind]
    for key in entry:
        if key not in takes and key != "distribution":
            raise ConfigError(f"{where}: {kind} takes {', '.join(takes)}, not {key!r}")
    given = {key: entry.get(key, default) for key, default in takes.items()}
    if "value" in takes:
        if "value" not in entry:
            raise ConfigError(f"{where}: constant needs value")
        return Parameter(name, kind, {}, (entry["value"],))
    for key, value in given.items():
        if value is None:
            raise ConfigError(f"{where}: {kind} needs {key}")
    if "values" in takes:
        return _categorical(name, kind, given, where)
    numbers = {key: _number(value, f"{where}.{key}") for key, value in given.items()}
    _check_range(kind, numbers, where)
    return Parameter(name, kind, numbers)


def _implied(entry: Mapping[str, Any], where: str) -> str:
    """Name the distribution that W&B takes when none is given."""
    if "values" in entry:
        return "categorical_w_probabilities" if "probabilities" in entry else "categorical"
    if "value" in entry:
        return "constant"
    if "min" in entry and "max" in entry:
        whole = [isinstance(_number(entry[end], f"{where}.{end}"), int) for end in ("min", "max")]
        if whole[0] != whole[1]:
            raise ConfigError(f"{where}: write min and max both as 1 or both as 1.0")
        return "int_uniform" if all(whole) else "uniform"
    raise ConfigError(f"{where}: give value, values, or min and max, or name a distribution")


def _categorical(name: str, kind: str, given: Mapping[str, Any], where: str) -> Parameter:
    values = given["values"]
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{where}.values is {values}; give a list of at least one value")
    if len({label(value) for value in values}) < len(values):
        raise ConfigError(f"{where}.values holds a value twice")
    if kind == "categorical":
        return Parameter(name, kind, {}, tuple(values))
    weights = given["probabilities"]
    if not isinstance(weights, list) or len(weights) != len(values):
        raise ConfigError(f"{where}.probabilities must be one number for each of the values")
    numbers = {str(i): _number(w, f"{where}.probabilities") for i, w in enumerate(weights)}
    if min(numbers.values()) < 0 or abs(sum(numbers.values()) - 1) > 1e-6:
        raise ConfigError(f"{where}.probabilities must not be negative and add up to 1")
    return Parameter(name, kind, numbers, tuple(values))


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
    if kind.endswith("log_uniform_values") and numbers["min"] <= 0:
        raise ConfigError(f"{where}: min must be above 0 for a logarithm, it is {numbers['min']}")
    if kind == "int_uniform" and not all(float(n).is_integer() for n in numbers.values()):
        raise ConfigError(f"{where}: int_uniform needs whole numbers")
    for key in ("q", "sigma", "a", "b"):
        if numbers.get(key, 1) <= 0:
            raise ConfigError(f"{where}: {key} must be above 0, it is {numbers[key]}")
    # The commonest mistake with W&B: nobody means e^0.0001 to e^0.1, which is 1.0 to 1.1.
    if kind.endswith("log_uniform") and numbers["min"] > 0 and numbers["max"] <= 1:
        raise ConfigError(
            f"{where}: {kind} takes the natural logarithms of the bounds, so this means "
            f"{math.exp(numbers['min']):.4g} to {math.exp(numbers['max']):.4g}; use {kind}_values"
        )


def _rounded(value: float, step: float) -> float:
    """Round to a multiple; whole steps give whole numbers, others lose the noise of binary."""
    times = round(value / step)
    return times * step if isinstance(step, int) else round(times * step, 12)


def _near(kind: str) -> str:
    return did_you_mean(kind, DISTRIBUTIONS)
