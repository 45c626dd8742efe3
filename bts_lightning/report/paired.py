"""Two evaluations of the same cases, paired case by case: how much they differ and how surely."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bts_lightning.metrics.table import Metric
from bts_lightning.report.statistics import (
    Bootstrap,
    Estimate,
    bootstrap,
    fewest_cases,
    holm,
    signed_rank,
)
from bts_lightning.report.summary import count_cases
from bts_lightning.report.table import EvaluationTable

ALPHA = 0.05


@dataclass(frozen=True)
class Paired:
    """Hold the differences other minus reference of one metric, in printed units.

    `p` is Wilcoxon's signed-rank test of every cell (subset × region), `corrected` the same after
    Holm's correction over all cells of this metric and this pair of runs.
    """

    metric: Metric
    subsets: tuple[str, ...]
    regions: tuple[str, ...]
    means: Bootstrap
    p: np.ndarray
    corrected: np.ndarray

    @property
    def cells(self) -> int:
        """Count the tests that the correction is for."""
        return int(np.isfinite(self.p).sum())

    def rows(self) -> Iterator[tuple[str, str | None, Estimate, np.ndarray]]:
        """Give (title, subset or None, estimate and corrected p per region) for every line."""
        untested = np.full(len(self.regions), np.nan)
        for i, (title, subset, line) in enumerate(self.means.rows(self.subsets)):
            yield title, subset, line, self.corrected[i] if subset else untested

    def verdict(self) -> str:
        """Say in one sentence how many cells differ surely, and in whose favour."""
        sure = self.corrected < ALPHA
        up = int((sure & (self.means.mean > 0)).sum())
        down = int((sure & (self.means.mean < 0)).sum())
        better, worse = (up, down) if self.metric.more_is_better else (down, up)
        return (
            f"{self.metric.difference}: better than the reference in {better}, worse in {worse} "
            f"of {self.cells} cells after Holm's correction (p < {ALPHA})."
        )


def pair(reference: EvaluationTable, other: EvaluationTable, metric: Metric) -> Paired:
    """Subtract two tables of the same cases over the subsets that both have."""
    subsets = tuple(name for name in reference.subsets if name in other.subsets)
    first, second = (
        table.grid(metric.name)[:, [table.subsets.index(name) for name in subsets]]
        for table in (reference, other)
    )
    differences = metric.factor * (second - first)
    p = np.array(
        [
            [signed_rank(differences[:, i, region]) for region in range(len(reference.regions))]
            for i in range(len(subsets))
        ]
    )
    return Paired(metric, subsets, reference.regions, bootstrap(differences), p, holm(p))


def remarks(pairs: list[Paired], cases: int) -> list[str]:
    """Say how the numbers were made and what they cannot show."""
    cells = pairs[0].cells
    said = [
        f"{count_cases(cases)}, paired by case and subset. Differences are run minus reference; "
        "intervals hold 95 % of 5000 bootstrap samples of cases; * marks p < 0.05 of Wilcoxon's "
        f"signed-rank test after Holm's correction over the {cells} cells of a metric. Averages "
        "over subsets are not tested: they count as sure where the interval has no 0."
    ]
    if cases < fewest_cases(cells):
        said.append(
            f"With {count_cases(cases)} no cell can reach p < 0.05 after the correction: that "
            f"takes at least {fewest_cases(cells)}."
        )
    return said
