"""What each modality is worth: exact Shapley values, and the gain from one more sequence."""

from dataclasses import dataclass
from math import factorial

import numpy as np

from bts_lightning.modalities import MODALITIES, parse_subset, subset_name
from bts_lightning.report.table import SUBSET_NAMES, EvaluationTable

# Without any image nothing is segmented, so the empty set is worth a Dice of 0.
EMPTY_SET = 0.0


@dataclass(frozen=True)
class Gain:
    """Hold what adding `modality` to `subset` changes, case × region in points of Dice."""

    subset: str
    modality: str
    values: np.ndarray


def shapley(dice: np.ndarray) -> np.ndarray:
    """Give exact Shapley values: `dice` ...×15 in the order of the subsets, result ...×4.

    The four values of a case add up to its Dice with all four modalities.
    """
    # Subset number k of the vocabulary is the binary number k with T1 as the high bit; 0 is empty.
    worth = np.concatenate([np.full((*dice.shape[:-1], 1), EMPTY_SET), dice], axis=-1)
    n = len(MODALITIES)
    values = np.zeros((*dice.shape[:-1], n))
    for modality in range(n):
        bit = 1 << (n - 1 - modality)
        for code in (code for code in range(1 << n) if not code & bit):
            size = code.bit_count()
            weight = factorial(size) * factorial(n - size - 1) / factorial(n)
            values[..., modality] += weight * (worth[..., code | bit] - worth[..., code])
    return values


def case_values(table: EvaluationTable) -> tuple[list[str], np.ndarray]:
    """Give the cases that show all 15 subsets and their values, case × region × modality."""
    if table.subsets != SUBSET_NAMES:
        return [], np.empty((0, 3, len(MODALITIES)))
    dice = table.grid("dice").transpose(0, 2, 1)  # case × region × subset
    complete = np.flatnonzero(table.shown().all(axis=1))
    return [table.cases[i] for i in complete], shapley(dice[complete])


def one_more(table: EvaluationTable) -> list[Gain]:
    """List, for each subset and each absent modality, the gain of every case that shows both."""
    dice = table.grid("dice")
    index = {name: i for i, name in enumerate(table.subsets)}
    gains = []
    for name in table.subsets:
        present = parse_subset(name)
        for number, modality in enumerate(MODALITIES):
            more = subset_name([p or number == i for i, p in enumerate(present)])
            if not present[number] and more in index:
                values = dice[:, index[more]] - dice[:, index[name]]
                gains.append(Gain(name, modality, values))
    return gains
