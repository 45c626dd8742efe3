"""Means over cases, how sure they are, and whether two runs differ."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from bts_lightning.modalities import parse_subset

REPLICATES = 5000
LEVEL = 95.0
# Bounds the memory of one draw to about 100 MB for a thousand cases.
_CHUNK = 1000
# Up to here all sign patterns are counted; 2^50 is still exact in a float. scipy's own limit.
_EXACT = 50


@dataclass(frozen=True)
class Estimate:
    """Hold means, the ends of their bootstrap intervals and the number of values behind each."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    count: np.ndarray

    def at(self, *index: int) -> tuple[float, float, float]:
        """Give mean, low and high of one cell."""
        return float(self.mean[index]), float(self.low[index]), float(self.high[index])


@dataclass(frozen=True)
class Bootstrap:
    """Hold the means of `values` (cases first) and the same means over resampled sets of cases.

    All cells of one bootstrap see the same resampled cases, so averages over cells and differences
    between them keep the pairing.
    """

    mean: np.ndarray
    count: np.ndarray
    replicates: np.ndarray

    def cells(self) -> Estimate:
        """Give each cell's mean with its percentile interval."""
        return _estimate(self.mean, self.replicates, self.count)

    def over(self, subsets: Sequence[int]) -> Estimate:
        """Average cells over some subsets (first axis), as the papers' "mean over 15" does."""
        chosen = list(subsets)
        count = self.count[chosen].min(axis=0)
        replicates = mean(self.replicates[:, chosen], axis=1)
        return _estimate(mean(self.mean[chosen], axis=0), replicates, count)

    def rows(self, subsets: Sequence[str]) -> Iterator[tuple[str, str | None, Estimate]]:
        """Give (title, subset or None, estimate) for each subset, then for each average."""
        cells = self.cells()
        for i, name in enumerate(subsets):
            line = Estimate(cells.mean[i], cells.low[i], cells.high[i], cells.count[i])
            yield name, name, line
        for title, indices in groups(subsets).items():
            yield title, None, self.over(indices)


def bootstrap(values: np.ndarray, *, seed: int = 0, replicates: int = REPLICATES) -> Bootstrap:
    """Resample cases (first axis) with replacement; values that are NaN take no part."""
    cases = values.shape[0]
    flat = values.reshape(cases, -1)
    there = np.isfinite(flat)
    filled = np.where(there, flat, 0.0)
    random = np.random.default_rng(seed)
    parts = []
    for start in range(0, replicates, _CHUNK):
        size = min(_CHUNK, replicates - start)
        drawn = _how_often(random, size, cases)
        parts.append(_ratio(drawn @ filled, drawn @ there))
    cells = values.shape[1:]
    mean = _ratio(filled.sum(axis=0), there.sum(axis=0))
    return Bootstrap(
        mean.reshape(cells),
        there.sum(axis=0).reshape(cells),
        np.concatenate(parts).reshape(replicates, *cells),
    )


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
    # Cases that do not differ carry no sign; Wilcoxon's own rule leaves them out.
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


def fewest_cases(cells: int, alpha: float = 0.05) -> int:
    """Give the number of cases below which no cell of a Holm family can reach `alpha`."""
    cases = 1
    # All n differences of one sign is the strongest outcome: its exact two-sided p is 2 / 2^n.
    while cells * 2.0 ** (1 - cases) >= alpha:
        cases += 1
    return cases


def _how_often(random: np.random.Generator, size: int, cases: int) -> np.ndarray:
    """Draw `size` samples of cases and count how often each case is in each."""
    drawn = random.integers(cases, size=(size, cases)) + cases * np.arange(size)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=size * cases).reshape(size, cases)
    return counts.astype(float)


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


def _estimate(mean: np.ndarray, replicates: np.ndarray, count: np.ndarray) -> Estimate:
    tail = (100 - LEVEL) / 2
    flat = replicates.reshape(len(replicates), -1)
    ends = np.full((2, flat.shape[1]), np.nan)
    # One case says nothing about others, so its interval of no width would be a lie.
    for cell in np.flatnonzero(count.ravel() > 1):
        finite = flat[np.isfinite(flat[:, cell]), cell]
        ends[:, cell] = np.percentile(finite, [tail, 100 - tail])
    low, high = ends.reshape(2, *mean.shape)
    return Estimate(mean, low, high, count)
