"""Simulate how often intervals hold the true mean, and how often tests are wrong.

    python -m tests.report.coverage

prints the tables of docs/evaluation.md in a minute or two. Patients are drawn with scans that are
alike: what makes two scans of a patient good or bad has a correlation of 0.7.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.special import betaincinv, ndtr, ndtri

from bts_lightning.metrics.policies import LONGEST
from bts_lightning.report.document import table
from bts_lightning.report.statistics import case_means, holm, patient_means, signed_rank

PATIENTS, SCANS = (5, 10, 25, 75, 250), (1, 2, 4)
# What an interval of 95 % should reach, from ten patients on; tables mark what does not.
TARGET, MOST_ALARMS = (93, 97), 6
ALIKE = 0.7
INFINITY = float("inf")
UNBOUNDED, SHARE, DISTANCE = (-INFINITY, INFINITY), (0.0, 1.0), (0.0, LONGEST["brats"])
# Fine enough to interpolate quantiles.
_GRID = np.linspace(0, 1, 4001)

Values = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


@dataclass(frozen=True)
class Scenario:
    """Hold what is measured: a drawer of values, scans × patients × any, and their bounds."""

    name: str
    draw: Values
    bounds: tuple[float, float]


def dice(missed: float, perfect: float, a: float, b: float) -> Callable[[np.ndarray], np.ndarray]:
    """Give Dice by its quantile: some 0, some 1, the rest from a beta distribution."""
    rest = betaincinv(a, b, _GRID)

    def at(quantile: np.ndarray) -> np.ndarray:
        values = np.interp((quantile - missed) / (1 - missed - perfect), _GRID, rest)
        values = np.where(quantile < missed, 0.0, values)
        return np.where(quantile > 1 - perfect, 1.0, values)

    return at


def distance(missed: float, empty: float) -> Callable[[np.ndarray], np.ndarray]:
    """Give HD95 by its quantile: some 0, some 373 mm, the rest log-normal about 6 mm."""

    def at(quantile: np.ndarray) -> np.ndarray:
        inner = np.clip((quantile - empty) / (1 - missed - empty), 1e-9, 1 - 1e-9)
        values = np.minimum(np.exp(1.8 + 0.8 * ndtri(inner)), LONGEST["brats"])
        values = np.where(quantile < empty, 0.0, values)
        return np.where(quantile > 1 - missed, LONGEST["brats"], values)

    return at


ET, WT = dice(0.08, 0.08, 6, 1.5), dice(0, 0, 18, 2)


def one(at: Callable[[np.ndarray], np.ndarray]) -> Values:
    """Draw the scores of a network."""
    return lambda random, shape: at(ndtr(quality(random, shape)))


def gain(at: Callable[[np.ndarray], np.ndarray], shift: float) -> Values:
    """Draw what one network has over another, whose qualities correlate by 0.95."""

    def draw(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        first, own = quality(random, shape), quality(random, shape)
        return at(ndtr(0.95 * first + np.sqrt(1 - 0.95**2) * own + shift)) - at(ndtr(first))

    return draw


def quality(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw normal values, scans × patients × any, that correlate within a patient."""
    shared = random.standard_normal((1, *shape[1:]))
    return np.sqrt(ALIKE) * shared + np.sqrt(1 - ALIKE) * random.standard_normal(shape)


SCENARIOS = (
    Scenario("Dice, 8 % zeros and 8 % ones", one(ET), SHARE),
    Scenario("Dice, none missed", one(WT), SHARE),
    Scenario("HD95, none missed", one(distance(0, 0)), DISTANCE),
    Scenario("gain of 2 points of Dice, 8 % zeros and ones", gain(ET, 0.1), UNBOUNDED),
    Scenario("gain of 0.6 points, none missed", gain(WT, 0.1), UNBOUNDED),
    Scenario("no gain, 8 % zeros and ones", gain(ET, 0.0), UNBOUNDED),
    Scenario("gain of 6 points, half of the zeros mended", gain(ET, 0.3), UNBOUNDED),
    Scenario("Dice, 3 % zeros", one(dice(0.03, 0, 12, 2)), SHARE),
    Scenario("HD95, 8 % missed (373 mm)", one(distance(0.08, 0.08)), DISTANCE),
)


@cache
def truth(scenario: Scenario) -> float:
    """Give the mean of all patients there could be."""
    return float(scenario.draw(np.random.default_rng(1), (1, 1, 4_000_000)).mean())


def coverage(scenario: Scenario, patients: int, scans: int, samples: int = 20_000) -> float:
    """Give the share of samples, in percent, whose interval holds the true mean."""
    values = scenario.draw(np.random.default_rng(0), (scans, patients, samples))
    values = values.reshape(-1, samples)
    cells = case_means(values, owners(patients, scans), scenario.bounds).cells()
    return _holds(truth(scenario), cells.low, cells.high)


def percentile_coverage(patients: int, scans: int, samples: int = 1000) -> float:
    """Do the same with percentiles of a bootstrap over scans, for the first scenario."""
    scenario = SCENARIOS[0]
    values = scenario.draw(np.random.default_rng(0), (scans, patients, samples))
    return _holds(truth(scenario), *_percentiles(values.reshape(-1, samples)))


def false_alarms(patients: int, scans: int, samples: int, cells: int = 1) -> float:
    """Give the share of comparisons, in percent, where a test finds what is not there.

    Args:
        cells: of one comparison, corrected by Holm's rule.
    """
    values = _nothing(patients, scans, samples, cells)
    p = np.apply_along_axis(signed_rank, 0, patient_means(values, owners(patients, scans)))
    return 100 * float(np.mean([(holm(row) < 0.05).any() for row in p]))


def scan_alarms(patients: int, scans: int, samples: int) -> float:
    """Do the same with one test that takes each scan for a patient."""
    p = np.apply_along_axis(signed_rank, 0, _nothing(patients, scans, samples, 1))
    return 100 * float((p < 0.05).mean())


def interval_alarms(patients: int, scans: int, samples: int = 200, cells: int = 9) -> float:
    """Do the same by asking which bootstrap intervals of any cell leave out 0."""
    values = _nothing(patients, scans, samples, cells).reshape(-1, samples * cells)
    low, high = _percentiles(values)
    return 100 * float(((low > 0) | (high < 0)).reshape(samples, cells).any(axis=1).mean())


def owners(patients: int, scans: int) -> list[str]:
    """Name the patient of each scan, in the order of what is drawn."""
    return [str(patient) for _ in range(scans) for patient in range(patients)]


def tables() -> list[str]:
    """Lay both tables out, in percent, for 1 / 2 / 4 scans a patient; what misses is bold."""
    covered = [
        (s.name, lambda n, k, s=s: coverage(s, n, k, min(20_000, 400_000 // n))) for s in SCENARIOS
    ]
    covered.append(("*percentiles of scans, first row's Dice*", percentile_coverage))
    wrong = [
        ("one test", lambda n, k: false_alarms(n, k, 3000)),
        ("any of 9 averages, after Holm", lambda n, k: false_alarms(n, k, 500, 9)),
        ("*one test over scans*", lambda n, k: scan_alarms(n, k, 1000)),
        ("*any of 9 intervals of scans without 0*", interval_alarms),
    ]
    return [
        *_table("the interval holds the mean", covered, TARGET),
        "",
        *_table("finds a difference that is none", wrong, (0, MOST_ALARMS)),
    ]


def _table(
    title: str, rows: list[tuple[str, Callable[[int, int], float]]], target: tuple[int, int]
) -> list[str]:
    lines = []
    for name, measure in rows:
        cells = []
        for patients in PATIENTS:
            shares = [round(measure(patients, scans)) for scans in SCANS]
            text = " / ".join(map(str, shares))
            good = all(target[0] <= share <= target[1] for share in shares)
            cells.append(text if good or patients < 10 else f"**{text}**")
        lines.append([name, *cells])
    heads = [title, "5 patients", *map(str, PATIENTS[1:])]
    return table(heads, lines, ["---", *["---:"] * len(PATIENTS)])


def _nothing(patients: int, scans: int, samples: int, cells: int) -> np.ndarray:
    """Draw differences without a gain, of which a part is common to all cells of a comparison."""
    random, draw = np.random.default_rng(0), gain(ET, 0.0)
    shape = (scans, patients, samples)
    values = draw(random, (*shape, cells)) + (draw(random, (*shape, 1)) if cells > 1 else 0)
    return values.reshape(-1, samples, cells)


def _percentiles(values: np.ndarray) -> np.ndarray:
    """Give the ends of the percentile bootstrap over scans (first axis)."""
    scans = len(values)
    drawn = np.random.default_rng(0).multinomial(scans, np.full(scans, 1 / scans), 1000) / scans
    return np.percentile(drawn @ values, [2.5, 97.5], axis=0)


def _holds(true: float, low: np.ndarray, high: np.ndarray) -> float:
    return 100 * float(((low <= true) & (true <= high)).mean())


if __name__ == "__main__":
    print("\n".join(tables()))
