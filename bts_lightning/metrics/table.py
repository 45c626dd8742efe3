"""The table of metrics: what is measured, how it is shown and what empty regions score."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bts_lightning.metrics.calibration.columns import brier, brier_band, ece, ece_band, entropy
from bts_lightning.metrics.hd95 import hd95
from bts_lightning.metrics.lesions.columns import (
    false_lesions,
    found,
    lesion_dice,
    lesion_f1,
    lesion_hd95,
    lesion_nsd,
    lesions,
)
from bts_lightning.metrics.lesions.tasks import POLICIES, LesionPolicy, LesionRules
from bts_lightning.metrics.nsd import nsd
from bts_lightning.metrics.overlaps import dice, dice_pp, precision, sensitivity, without_small_et
from bts_lightning.metrics.policies import Floats

if TYPE_CHECKING:
    from bts_lightning.metrics.masks import Masks


@dataclass(frozen=True)
class Metric:
    """A row of the table.

    Attributes:
        measure: from the masks of a case to subsets × regions, NaN where the metric is undefined;
            its name is the column in `cases.csv`.
        heading: with the printed unit.
        best: the value of a perfect prediction, and of a region that is rightly empty.
        worst: of a region that is missed or invented, where the metric is undefined; infinity
            stands for the longest distance of the policy.
        factor: from the measured to the printed unit.
        decimals: to print.
        seen: leaves of the masks what is measured, by default all; empty regions are judged by it.
        is_main: stands in summary, LaTeX, comparisons and studies, not only in the report.
        in_validation: is measured at every validation of a training too, and logged.
        by: the policies of lesions that give it, or calibration; they say themselves what empty
            regions score. None for what is always measured.
    """

    measure: Callable[["Masks"], Floats]
    heading: str
    best: float
    worst: float
    factor: float = 1.0
    decimals: int = 2
    seen: Callable[["Masks"], "Masks"] | None = None
    is_main: bool = True
    in_validation: bool = False
    by: tuple[LesionPolicy | Literal["calibration"], ...] = ()

    @property
    def name(self) -> str:
        """The column in `cases.csv`."""
        return self.measure.__name__

    @property
    def more_is_better(self) -> bool:
        """Which way is good."""
        return self.best > self.worst

    @property
    def bounds(self) -> tuple[float, float]:
        """Give the least and the largest value that there can be."""
        return min(self.best, self.worst), max(self.best, self.worst)

    @property
    def difference(self) -> str:
        """The heading of a difference: percentages differ in points."""
        return self.heading.replace("(%)", "(points)")


TABLE = (
    Metric(dice, "Dice (%)", best=1, worst=0, factor=100, in_validation=True),
    Metric(hd95, "HD95 (mm)", best=0, worst=math.inf, in_validation=True),
    Metric(
        dice_pp,
        "Dice, ETpp (%)",
        best=1,
        worst=0,
        factor=100,
        seen=without_small_et,
        is_main=False,
    ),
    Metric(nsd, "NSD, 1 mm (%)", best=1, worst=0, factor=100, is_main=False),
    Metric(sensitivity, "Sensitivity (%)", best=1, worst=0, factor=100, is_main=False),
    Metric(precision, "Precision (%)", best=1, worst=0, factor=100, is_main=False),
    Metric(lesion_dice, "Lesion-wise Dice (%)", best=1, worst=0, factor=100, by=POLICIES),
    Metric(lesion_hd95, "Lesion-wise HD95 (mm)", best=0, worst=math.inf, by=POLICIES),
    Metric(
        lesion_nsd,
        "Lesion-wise NSD, 1 mm (%)",
        best=1,
        worst=0,
        factor=100,
        is_main=False,
        by=("brats2024", "brats2025"),
    ),
    Metric(lesion_f1, "Lesion F1 (%)", best=1, worst=0, factor=100, is_main=False, by=POLICIES),
    *(
        Metric(measure, heading, best=0, worst=1, factor=100, is_main=False, by=("calibration",))
        for measure, heading in (
            (ece_band, "Calibration error, band (%)"),
            (brier_band, "Brier score, band (× 100)"),
            (ece, "Calibration error (%)"),
            (brier, "Brier score (× 100)"),
        )
    ),
)
METRICS = {metric.name: metric for metric in TABLE}
# Columns beside the metrics: a volume or a number of lesions is neither good nor bad.
VOLUMES = ("true_ml", "predicted_ml")
_OF_LESIONS, _OF_CALIBRATION = (lesions, found, false_lesions), (entropy,)
COUNTS = tuple(count.__name__ for count in (*_OF_LESIONS, *_OF_CALIBRATION))


def measured_by(rules: LesionRules | None, calibration: bool = False) -> list[Metric]:
    """Give the rows that are measured where lesions are scored so, or not at all."""
    asked = {*([rules.policy] if rules else []), *(["calibration"] if calibration else [])}
    return [m for m in TABLE if not m.by or asked & set(m.by)]


def counted_by(rules: object, calibration: object) -> "list[Callable[[Masks], Floats]]":
    """Give those of `COUNTS` that are there."""
    return [*(_OF_LESIONS if rules else ()), *(_OF_CALIBRATION if calibration else ())]


def columns_of(rules: LesionRules | None, calibration: bool = False) -> list[str]:
    """Name the columns of an evaluation that scores lesions so."""
    counts = [count.__name__ for count in counted_by(rules, calibration)]
    return [*(m.name for m in measured_by(rules, calibration)), *VOLUMES, *counts]
