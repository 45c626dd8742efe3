"""Whether a network is sure where it is right: risk and coverage over cases."""

import numpy as np

from bts_lightning.metrics.calibration.counts import aurc
from bts_lightning.report.statistics import groups, mean
from bts_lightning.report.table import EvaluationTable

# The area under the curve, that of cases in any order, and that of cases in order of their risk.
AURC, CHANCE, BEST = range(3)


def risk_coverage(table: EvaluationTable) -> tuple[np.ndarray, np.ndarray]:
    """Give the three areas, subsets × regions × 3, and how many cases stand behind each.

    Risk is 1 - Dice, confidence the entropy inside what is predicted, from low to high. A case
    without a prediction has none, and one without Dice no risk.
    """
    risk, entropy = 1 - table.grid("dice"), table.grid("entropy")
    known = np.isfinite(risk) & np.isfinite(entropy)
    areas = np.full((*risk.shape[1:], 3), np.nan)
    for s, r in np.ndindex(*risk.shape[1:]):
        here = known[:, s, r]
        if here.any():
            mine, sure = risk[here, s, r], -entropy[here, s, r]
            areas[s, r] = aurc(sure, mine), mine.mean(), aurc(-mine, mine)
    return areas, known.sum(axis=0)


def risk_rows(
    table: EvaluationTable,
) -> list[tuple[str, str | None, np.ndarray, np.ndarray]]:
    """Give (title, subset or None, areas, cases) for each subset, then for each average."""
    areas, cases = risk_coverage(table)
    rows: list[tuple[str, str | None, np.ndarray, np.ndarray]] = [
        (name, name, areas[s], cases[s]) for s, name in enumerate(table.subsets)
    ]
    for title, chosen in groups(table.subsets).items():
        rows.append((title, None, mean(areas[chosen], axis=0), cases[chosen].min(axis=0)))
    return rows
