"""Stop trials that fall behind, by the rule that W&B's server applies to a sweep."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bts_lightning.errors import ConfigError

# With eta 1.1 a hundred rungs reach past any training.
_RUNGS = 100


@dataclass(frozen=True)
class Hyperband:
    """Let the best 1/eta of the trials pass each rung; a rung is a number of validations.

    Attributes:
        rungs: how many values a trial must have logged before the one that is compared.
        eta: at each rung the best 1/eta go on.
        strict: compare the value at the rung; by default the best until then.
    """

    rungs: tuple[int, ...]
    eta: float
    strict: bool

    def is_behind(self, own: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
        """Say whether a trial should stop, from all values so far; more is better.

        Args:
            own: values of the trial.
            others: values of all other trials, running and ended ones.
        """
        reached = [rung for rung in self.rungs if rung < len(own)]
        if not reached:
            return False
        rung = reached[-1]
        values = sorted((v[rung] for v in [own, *others] if len(v) > rung), reverse=True)
        threshold = values[int(len(values) / self.eta)]
        return (own[rung] if self.strict else max(own)) < threshold


def read_hyperband(section: Any, source: str) -> Hyperband | None:
    """Read `early_terminate` of a sweep."""
    if section is None:
        return None
    where = f"{source}: early_terminate"
    if not isinstance(section, dict) or section.get("type") != "hyperband":
        raise ConfigError(f"{where} is {section}; W&B knows type: hyperband")
    known = ("type", "min_iter", "max_iter", "s", "eta", "strict")
    for key in section:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}; it takes {', '.join(known)}")
    eta = section.get("eta", 3)
    if isinstance(eta, bool) or not isinstance(eta, int | float) or eta <= 1:
        raise ConfigError(f"{where}.eta is {eta}; it must be a number above 1")
    for key in ("min_iter", "max_iter", "s"):
        if key in section and (not isinstance(section[key], int) or section[key] < 1):
            raise ConfigError(f"{where}.{key} is {section[key]}; it must be a whole number from 1")
    if "max_iter" in section and "s" in section:
        powers = range(1, section["s"] + 1)
        rungs = [int(section["max_iter"] / eta**n) for n in powers]
        rungs = sorted(rung for rung in rungs if rung >= 1)
    elif "min_iter" in section:
        rungs = [int(section["min_iter"] * eta**n) for n in range(_RUNGS)]
    else:
        raise ConfigError(f"{where}: give min_iter, or max_iter and s")
    if not rungs:
        raise ConfigError(f"{where}: max_iter {section['max_iter']} leaves no rung; raise it")
    return Hyperband(tuple(rungs), float(eta), bool(section.get("strict", False)))
