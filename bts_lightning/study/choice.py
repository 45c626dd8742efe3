"""Choose by the validation cases of a study: the experiment or pair, and what is cleaned up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from bts_lightning.chance import generator
from bts_lightning.inference.protocol import SmallET
from bts_lightning.metrics.masks import members_of
from bts_lightning.metrics.policies import EmptyPolicy, fill
from bts_lightning.metrics.table import METRICS
from bts_lightning.modalities import Scheme
from bts_lightning.report.statistics import Estimate, case_means, mean

# Voxels; 0 leaves everything as it is.
PART_MINIMA = (0, 10, 25, 50, 100, 250, 500, 1000)
ET_MINIMA = (50, 100, 200, 300, 500, 750, 1000)
# nnU-Net's number of folds.
PARTS = 5
# What two decimals of a table in percent show.
LEAST_GAIN = 1e-4

Counts = NDArray[np.int64]  # … × size of the part × predicted × true class
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Cleanup:
    """What is taken for a false alarm."""

    component_minimum: int = 0
    et_minimum: int = 0
    et_small: SmallET = "erase"

    @property
    def words(self) -> list[str]:
        """Say it as overrides; what changes nothing is said too, for a run may have another."""
        small = [f"evaluation.et_small={self.et_small}"] if self.et_minimum else []
        return [
            f"evaluation.et_minimum={self.et_minimum}",
            *small,
            f"evaluation.component_minimum={self.component_minimum}",
        ]


@dataclass(frozen=True)
class Choice:
    """What did best on the validation cases.

    Attributes:
        name: of the experiment, or of both of a pair.
        table: each candidate's Dice by region and, last, their mean.
        gain: of the chosen over each other candidate, in Dice.
        cleanup: what its label maps gain most by; nothing, unless that showed on other cases.
        plain: Dice without that.
        held_out: Dice where each case was cleaned up as was best for the others.
        cleaned: gain of `held_out` over `plain`.
    """

    name: str
    table: Mapping[str, Estimate]
    gain: Mapping[str, Estimate]
    cleanup: Cleanup
    plain: float
    held_out: float
    cleaned: Estimate


def cleanups(scheme: Scheme) -> list[Cleanup]:
    """List what may be done, from nothing at all to more."""
    small = [(0, "erase"), *((n, how) for n in ET_MINIMA for how in get_args(SmallET))]
    small = small if "ET" in scheme.paint else small[:1]
    return [Cleanup(part, n, how) for part in PART_MINIMA for n, how in small]


def choose(
    counts: Mapping[str, Counts], patients: Sequence[str], scheme: Scheme, empty: EmptyPolicy
) -> Choice:
    """Choose the candidate of the best mean Dice, then what its label maps gain by.

    Args:
        counts: of each candidate, case × subset × size × predicted × true class, what
            `counted_by_size` gives with `PART_MINIMA`; -1 where a case cannot show a subset.
        patients: of the cases.
        scheme: what the classes mean.
        empty: what an empty region scores.
    """
    plain = {name: dice(of, Cleanup(), scheme, empty) for name, of in counts.items()}
    means = {name: _score(values) for name, values in plain.items()}
    # The first of equals: experiments stand before pairs.
    best = max(means, key=lambda name: means[name])
    every = cleanups(scheme)
    cleaned = np.stack([dice(counts[best], one, scheme, empty) for one in every])
    held_out = _held_out(cleaned, patients)
    is_better = _score(held_out) - means[best] > LEAST_GAIN
    return Choice(
        name=best,
        table={name: _by_region(values, patients) for name, values in plain.items()},
        gain={
            name: _by_region(plain[best] - values, patients, signed=True)
            for name, values in plain.items()
            if name != best
        },
        cleanup=every[_best(cleaned)] if is_better else every[0],
        plain=means[best],
        held_out=_score(held_out),
        cleaned=_by_region(held_out - plain[best], patients, signed=True),
    )


def dice(counts: Counts, cleanup: Cleanup, scheme: Scheme, empty: EmptyPolicy) -> Floats:
    """Give the Dice of each case, subset and region after a cleanup; NaN where there is none."""
    kept = counts[..., PART_MINIMA.index(cleanup.component_minimum) :, :, :].sum(axis=-3)
    # What was taken out is background now.
    kept[..., 0, :] += counts.sum(axis=(-3, -2)) - kept.sum(axis=-2)
    if cleanup.et_minimum:
        et = scheme.paint["ET"]
        is_small = kept[..., et, :].sum(axis=-1, keepdims=True) < cleanup.et_minimum
        moved = np.where(is_small, kept[..., et, :], 0)
        kept[..., et, :] -= moved
        kept[..., 0 if cleanup.et_small == "erase" else scheme.paint["TC"], :] += moved
    member = members_of(scheme).astype(np.int64)
    both = np.einsum("...pt,rp,rt->...r", kept, member, member).astype(np.float64)
    found = np.einsum("...pt,rp->...r", kept, member).astype(np.float64)
    there = np.einsum("...pt,rt->...r", kept, member).astype(np.float64)
    size = found + there
    values = np.divide(2 * both, size, out=np.full_like(both, np.nan), where=size > 0)
    metric = METRICS["dice"]
    values = fill(values, there, found, metric.best, metric.worst, empty)
    return np.where(counts[..., :1, 0, 0] < 0, np.nan, values)


def _score(values: Floats) -> float:
    """Average Dice as `val/dice/mean` does: over cases, then over subsets and regions."""
    return float(mean(mean(values, axis=0).ravel(), axis=0))


def _best(cleaned: Floats) -> int:
    return int(np.argmax([_score(values) for values in cleaned]))


def _held_out(cleaned: Floats, patients: Sequence[str]) -> Floats:
    """Clean up the cases of each part of the patients as is best for the others."""
    names = sorted(set(patients))
    order = generator(0, "best").permutation(len(names))
    part = {names[n]: i % PARTS for i, n in enumerate(order)}
    own = np.array([part[patient] for patient in patients])
    held_out = cleaned[0].copy()
    for number in range(PARTS):
        mine = own == number
        if mine.any() and not mine.all():
            held_out[mine] = cleaned[_best(cleaned[:, ~mine])][mine]
    return held_out


def _by_region(values: Floats, patients: Sequence[str], *, signed: bool = False) -> Estimate:
    """Average over subsets and cases: each region, and last their mean."""
    of_cases = mean(values, axis=1)
    columns = np.concatenate([of_cases, mean(of_cases, axis=1)[:, None]], axis=1)
    return case_means(columns, patients, (-1.0 if signed else 0.0, 1.0)).cells()
