"""Means over cases, how sure they are, and whether two runs differ."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from bts_lightning.modalities import parse_subset

LEVEL = 0.95
# Up to here all sign patterns are counted; 2^50 is still exact in a float. scipy's own limit.
_EXACT = 50


@dataclass(frozen=True)
class Estimate:
    """Hold means, the ends of their intervals and the number of cases behind each."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    count: np.ndarray

    def at(self, *index: int) -> tuple[float, float, float]:
        """Give mean, low and high of one cell."""
        return float(self.mean[index]), float(self.low[index]), float(self.high[index])


@dataclass(frozen=True)
class Means:
    """Hold the means of cells over cases, and how far each moves with each patient.

    Attributes:
        count: of the cases behind a mean.
        patients: how many patients they show.
        moves: patient × cell, what the mean loses when all scans of the patient are left out. It
            keeps the pairing: the moves of an average of cells are the average of their moves.
        bounds: of the values, infinite where there is none.
    """

    mean: np.ndarray
    count: np.ndarray
    patients: np.ndarray
    moves: np.ndarray
    bounds: tuple[float, float]

    def cells(self) -> Estimate:
        """Give each cell's mean with its interval."""
        return self._estimate(self.mean, self.count, self.patients, self.moves)

    def over(self, subsets: Sequence[int]) -> Estimate:
        """Average cells over some subsets (first axis), as the papers' "mean over 15" does."""
        chosen = list(subsets)
        return self._estimate(
            mean(self.mean[chosen], axis=0),
            self.count[chosen].min(axis=0),
            self.patients[chosen].min(axis=0),
            mean(self.moves[:, chosen], axis=1),
        )

    def rows(self, subsets: Sequence[str]) -> Iterator[tuple[str, str | None, Estimate]]:
        """Give (title, subset or None, estimate) for each subset, then for each average."""
        cells = self.cells()
        for i, name in enumerate(subsets):
            line = Estimate(cells.mean[i], cells.low[i], cells.high[i], cells.count[i])
            yield name, name, line
        for title, indices in groups(subsets).items():
            yield title, None, self.over(indices)

    def _estimate(
        self, mean: np.ndarray, count: np.ndarray, patients: np.ndarray, moves: np.ndarray
    ) -> Estimate:
        # One patient says nothing about others, so an interval of no width would be a lie.
        several = patients > 1
        n = np.where(several, patients, 2)
        error = np.sqrt((n - 1) / n * (moves**2).sum(axis=0))
        # As many degrees of freedom as patients would do for normal values. Dice is skewed, and its
        # spread is known worse: half of them cover best, `python -m tests.report.coverage`.
        half = np.where(several, stats.t.ppf((1 + LEVEL) / 2, n / 2) * error, np.nan)
        return Estimate(mean, *_ends(mean, half, *self.bounds), count)


def case_means(
    values: np.ndarray,
    patients: Sequence[str],
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Means:
    """Average over cases (first axis), each of the patient named; NaN takes no part."""
    totals, counts = _by_patient(values, patients)
    total, count = totals.sum(axis=0), counts.sum(axis=0)
    average = _ratio(total, count)
    moves = _ratio(totals - average * counts, count - counts)
    return Means(average, count, (counts > 0).sum(axis=0), moves, bounds)


def patient_means(values: np.ndarray, patients: Sequence[str]) -> np.ndarray:
    """Average the cases (first axis) of each patient; a test takes its values for independent."""
    return _ratio(*_by_patient(values, patients))


def mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Average what is there; all NaN gives NaN without numpy's warning."""
    there = np.isfinite(values)
    return _ratio(np.where(there, values, 0.0).sum(axis=axis), there.sum(axis=axis))


def groups(subsets: Sequence[str]) -> dict[str, list[int]]:
    """Name the averages that a report shows, with the indices of the subsets in each."""
    with_t1c = [i for i, name in enumerate(subsets) if parse_subset(name)[1]]
    without = [i for i in range(len(subsets)) if i not in with_t1c]
    named = {
        f"mean over {len(subsets)}": list(range(len(subsets))),
        f"with T1c ({len(with_t1c)})": with_t1c,
        f"without T1c ({len(without)})": without,
    }
    return {name: indices for name, indices in named.items() if indices}


def signed_rank(differences: np.ndarray) -> float:
    """Give the two-sided Wilcoxon signed-rank p of paired differences; 1 if none differs."""
    finite = differences[np.isfinite(differences)]
    if not len(finite):
        return float("nan")
    # Patients who do not differ carry no sign; Wilcoxon's own rule leaves them out.
    nonzero = finite[finite != 0]
    if not len(nonzero):
        return 1.0
    if len(nonzero) <= _EXACT:
        return _exact_signed_rank(nonzero)
    return float(stats.wilcoxon(nonzero).pvalue)


def holm(p: np.ndarray) -> np.ndarray:
    """Correct p values of one family by Holm's step-down rule; NaN takes no part."""
    corrected = np.full(p.shape, np.nan)
    finite = np.isfinite(p)
    values = p[finite]
    order = np.argsort(values, kind="stable")
    steps = values[order] * (len(values) - np.arange(len(values)))
    stepped = np.empty(len(values))
    stepped[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    corrected[finite] = stepped
    return corrected


def signed_ranks(values: np.ndarray) -> np.ndarray:
    """Test each cell of patients' differences (first axis), and correct for their number."""
    return holm(np.apply_along_axis(signed_rank, 0, values))


def fewest_patients(cells: int, alpha: float = 0.05) -> int:
    """Give the number of patients below which no cell of a Holm family can reach `alpha`."""
    patients = 1
    # All n differences of one sign is the strongest outcome: its exact two-sided p is 2 / 2^n.
    while cells * 2.0 ** (1 - patients) >= alpha:
        patients += 1
    return patients


def _by_patient(values: np.ndarray, patients: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Add up the values of each patient (first axis), and count them."""
    names, owner = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    there = np.isfinite(values)
    totals = np.zeros((len(names), *values.shape[1:]))
    counts = np.zeros(totals.shape, dtype=int)
    np.add.at(totals, owner, np.where(there, values, 0.0))
    np.add.at(counts, owner, there)
    return totals, counts


def _ends(
    mean: np.ndarray, half: np.ndarray, lower: float, upper: float
) -> tuple[np.ndarray, np.ndarray]:
    """Give the ends of an interval that is even on a logarithmic scale towards each bound.

    That is the logit of a share and the logarithm of a distance; without bounds it is `half` on
    either side. On these scales the means of skewed values are nearly symmetric.
    """
    low, high = np.array(mean - half), np.array(mean + half)
    # Where every value lies on a bound there is no spread to lay out.
    inside = (mean > lower) & (mean < upper) & np.isfinite(half)
    if math.isinf(lower) or not inside.any():
        return low, high
    below, above = mean[inside] - lower, upper - mean[inside]
    share = below / (upper - lower)
    ratio = np.exp(half[inside] * (1 / below + 1 / above))
    low[inside] = lower + below / (share + (1 - share) * ratio)
    high[inside] = lower + below * ratio / (1 - share + share * ratio)
    return low, high


def _exact_signed_rank(differences: np.ndarray) -> float:
    """Count the sign patterns at least as extreme, ties included.

    scipy does the same for ties by trying patterns, which takes a second for a dozen cases.
    """
    ranks = stats.rankdata(np.abs(differences))
    doubled = np.rint(2 * ranks).astype(int)  # midranks of ties are halves
    patterns = np.zeros(doubled.sum() + 1)
    patterns[0] = 1
    for rank in doubled:
        patterns[rank:] += patterns[:-rank].copy()
    positive = int(doubled[differences > 0].sum())
    extreme = min(positive, int(doubled.sum()) - positive)
    return float(min(1.0, 2 * patterns[: extreme + 1].sum() / 2.0 ** len(doubled)))


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.where(count > 0, total / np.where(count > 0, count, 1), np.nan)
