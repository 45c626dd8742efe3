"""Two evaluations of the same cases, paired: how much they differ and how surely."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bts_lightning.metrics.table import Metric
from bts_lightning.report.statistics import (
    Estimate,
    Means,
    case_means,
    fewest_patients,
    groups,
    mean,
    patient_means,
    signed_ranks,
)
from bts_lightning.report.summary import INTERVALS, count, count_cases
from bts_lightning.report.table import EvaluationTable

ALPHA = 0.05


@dataclass(frozen=True)
class Paired:
    """Hold the differences other minus reference of one metric, in printed units.

    `corrected` is the p of Wilcoxon's signed-rank test over patients in every cell (subset ×
    region), after Holm's correction over all cells of this metric and this pair of runs;
    `averages` (average × region) the same for the averages over subsets, a family of their own.
    """

    metric: Metric
    subsets: tuple[str, ...]
    regions: tuple[str, ...]
    means: Means
    corrected: np.ndarray
    averages: np.ndarray

    @property
    def cells(self) -> int:
        """Count the tests of single subsets."""
        return int(np.isfinite(self.corrected).sum())

    def rows(self) -> Iterator[tuple[str, str | None, Estimate, np.ndarray]]:
        """Give (title, subset or None, estimate and corrected p per region) for every line."""
        tests = np.concatenate([self.corrected, self.averages])
        for (title, subset, line), p in zip(self.means.rows(self.subsets), tests, strict=True):
            yield title, subset, line, p

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
    patients = shared_patients(reference, other)
    each = patient_means(differences, patients)
    averages = [mean(each[:, chosen], axis=1) for chosen in groups(subsets).values()]
    return Paired(
        metric,
        subsets,
        reference.regions,
        case_means(differences, patients),
        signed_ranks(each),
        signed_ranks(np.stack(averages, axis=1)),
    )


def shared_patients(*tables: EvaluationTable) -> tuple[str, ...]:
    """Give the patients of the same cases; the table that knows of more shared scans is right."""
    return min((table.patients for table in tables), key=lambda patients: len(set(patients)))


def remarks(pairs: Sequence[Paired], cases: int, patients: int) -> list[str]:
    """Say how the numbers were made and what they cannot show."""
    cells, averages = pairs[0].cells, int(np.isfinite(pairs[0].averages).sum())
    said = [
        f"{count_cases(cases, patients)}, paired by case and subset. Differences are run minus "
        f"reference. {INTERVALS} * marks p < {ALPHA} of Wilcoxon's signed-rank test over patients "
        f"after Holm's correction over the {cells} cells of a metric, and over its {averages} "
        "averages by themselves."
    ]
    return [*said, *too_few(patients, {"cell": cells, "average": averages})]


def too_few(patients: int, families: Mapping[str, int]) -> list[str]:
    """Name the families of tests in which so few patients cannot show anything."""
    return [
        f"With {count('patient', patients)} no {what} can reach p < {ALPHA} after the correction: "
        f"that takes at least {fewest_patients(tests)}."
        for what, tests in families.items()
        if patients < fewest_patients(tests)
    ]
