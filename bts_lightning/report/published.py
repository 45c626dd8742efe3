"""Dice that papers and repositories printed for the 15 subsets, each with its protocol."""

import csv
from dataclasses import dataclass
from importlib.resources import files

import numpy as np

from bts_lightning.errors import UserError, did_you_mean
from bts_lightning.modalities import REGIONS, parse_subset, subset_name
from bts_lightning.report.table import SUBSET_NAMES

WARNING = (
    "These numbers are not ours and not comparable case by case: splits, preprocessing, training "
    "recipe, sliding window and metric conventions differ, and moving one network to another "
    "recipe has changed its published Dice by up to 14 points. Read them as an orientation; only "
    "runs evaluated on one split with one protocol (`bts compare`) say which method is better."
)


@dataclass(frozen=True)
class Published:
    """Hold one method's table in percent, subset × region in our order."""

    dataset: str
    method: str
    source: str
    protocol: str
    dice: np.ndarray


def read_published() -> list[Published]:
    """Read every published table that ships with the package."""
    tables: dict[tuple[str, str, str, str], Published] = {}
    for row in _rows("published.csv"):
        key = (row["dataset"], row["method"], row["source"], row["protocol"])
        table = tables.setdefault(
            key, Published(*key, np.full((len(SUBSET_NAMES), len(REGIONS)), np.nan))
        )
        # The sources write F for FLAIR.
        parts = ["flair" if part == "F" else part for part in row["available"].split("+")]
        subset = SUBSET_NAMES.index(subset_name(parse_subset("+".join(parts))))
        table.dice[subset, list(REGIONS).index(row["region"])] = float(row["dice_percent"])
    return list(tables.values())


def averages(source: str) -> list[tuple[str, list[float]]]:
    """Give each method's Dice in percent, by region, as the mean over the 15 subsets."""
    found: dict[str, list[tuple[str, list[float]]]] = {}
    for table in read_published():
        means = [float(value) for value in table.dice.mean(axis=0)]
        found.setdefault(table.source, []).append((table.method, means))
    for row in _rows("published_averages.csv"):
        means = [float(row[region]) for region in REGIONS]
        found.setdefault(row["source"], []).append((row["method"], means))
    if source not in found:
        raise UserError(f"--published {source}: {did_you_mean(source, found)}")
    return found[source]


def _rows(name: str) -> list[dict[str, str]]:
    text = files("bts_lightning.report").joinpath(name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
