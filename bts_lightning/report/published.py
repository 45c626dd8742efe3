"""Results that papers and repositories printed, each with its data set, split and quality."""

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np

from bts_lightning.errors import UserError, did_you_mean
from bts_lightning.modalities import REGIONS
from bts_lightning.report.table import SUBSET_NAMES

WARNING = (
    "These numbers are not ours and not comparable case by case: splits, preprocessing, training "
    "recipe, sliding window and metric conventions differ, and moving one network to another "
    "recipe has changed its published Dice by up to 14 points. Read them as an orientation; only "
    "runs evaluated on one split with one protocol (`bts compare`) say which method is better."
)
MEAN = "mean15"
# How names of cases begin; what they leave open is asked for.
_CASES = {
    r"Brats18_": "BraTS2018",
    r"BraTS20_": "BraTS2020",
    r"BraTS2021_": "BraTS2021",
    r"BraTS-GLI-\d+-0": "BraTS2023",
    r"BraTS-GLI-\d+-1": "BraTS2024",
    r"FeTS2022_": "FeTS2024",
}


@dataclass(frozen=True)
class Published:
    """Hold one printed table: a method's values of one metric in one region, by subset.

    Attributes:
        region: WT, TC, ET; ETpp, where a prediction of few voxels of ET was emptied; mean3 of all.
        metric: `dice` in percent, `hd95` in mm.
        quality: `ok`, `suspicious` or `corrupt`, as docs/published.md explains.
        values: of the 15 subsets in our order, then the printed average; NaN where none is printed.
    """

    dataset: str
    method: str
    split: str
    region: str
    metric: str
    source: str
    quality: str
    note: str
    values: np.ndarray

    def of(self, subset: str) -> float:
        """Give the value of a subset or the average: the printed one if there is one."""
        if subset != MEAN:
            return float(self.values[SUBSET_NAMES.index(subset)])
        return float(self.values[-1] if np.isfinite(self.values[-1]) else self.values[:-1].mean())


@cache
def read_published() -> tuple[Published, ...]:
    """Read every table that ships with the package, also the corrupt ones."""
    text = files("bts_lightning.report").joinpath("published.csv").read_text(encoding="utf-8")
    columns = (*SUBSET_NAMES, MEAN)
    return tuple(
        Published(**row, values=np.array(values))
        for row in csv.DictReader(text.splitlines())
        for values in [[float(row.pop(column) or "nan") for column in columns]]
    )


def select(
    *,
    dataset: str = "",
    method: str = "",
    region: str = "",
    metric: str = "",
    source: str = "",
    corrupt: bool = False,
) -> list[Published]:
    """Take the tables that are asked for, in any letter case; of a source a part of its name does.

    Raises:
        UserError: for a name that no table has.
    """
    asked = {"dataset": dataset, "method": method, "region": region, "metric": metric}
    found = list(read_published())
    for column, word in {**asked, "source": source}.items():
        if not word:
            continue
        names = sorted({str(getattr(table, column)) for table in read_published()})
        kept = [name for name in names if name.lower() == word.lower()]
        if column == "source":
            kept = [name for name in names if word.lower() in name.lower()]
        if not kept:
            raise UserError(f"no published {column} is called {word}: {did_you_mean(word, names)}")
        found = [table for table in found if getattr(table, column) in kept]
    return [table for table in found if corrupt or table.quality != "corrupt"]


def dataset_of(cases: Iterable[str]) -> str | None:
    """Name the data set that the names of cases tell, if they tell one."""
    told = {
        next((name for start, name in _CASES.items() if re.match(start, case, re.IGNORECASE)), None)
        for case in cases
    }
    return told.pop() if len(told) == 1 else None


@dataclass(frozen=True)
class Row:
    """One method beside others of its split and source, by region."""

    method: str
    dataset: str
    split: str
    source: str
    metric: str
    quality: str
    values: dict[str, float]
    notes: tuple[str, ...] = ()


def rows(tables: Sequence[Published], subset: str = MEAN) -> list[Row]:
    """Put the regions of a method side by side; a row is as good as the worst of them."""
    groups: dict[tuple[str, ...], list[Published]] = {}
    for table in tables:
        if np.isfinite(table.of(subset)):
            key = (table.method, table.dataset, table.split, table.source, table.metric)
            groups.setdefault(key, []).append(table)
    worst = ("corrupt", "suspicious", "ok")
    return [
        Row(
            method=group[0].method,
            dataset=group[0].dataset,
            split=group[0].split,
            source=group[0].source,
            metric=group[0].metric,
            quality=min((table.quality for table in group), key=worst.index),
            values={table.region: table.of(subset) for table in group},
            notes=tuple(dict.fromkeys(table.note for table in group if table.note)),
        )
        for group in groups.values()
    ]


def averages(source: str) -> list[Row]:
    """Give each method's Dice in percent, by region, as the mean over the 15 subsets.

    Raises:
        UserError: for a source that printed none.
    """
    found = rows(select(metric="dice"))
    whole = [row for row in found if set(REGIONS) <= row.values.keys()]
    if not (chosen := [row for row in whole if row.source == source]):
        names = {row.source for row in whole}
        raise UserError(f"--published {source}: {did_you_mean(source, names)}")
    return chosen
