"""Dice that papers and repositories printed for the 15 subsets, each with its protocol."""

import csv
from dataclasses import dataclass
from importlib.resources import files

import numpy as np

from bts_lightning.modalities import parse_subset, subset_name
from bts_lightning.report.table import REGION_NAMES, SUBSET_NAMES

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
    text = files("bts_lightning.report").joinpath("published.csv").read_text(encoding="utf-8")
    tables: dict[tuple[str, str, str, str], Published] = {}
    for row in csv.DictReader(text.splitlines()):
        key = (row["dataset"], row["method"], row["source"], row["protocol"])
        table = tables.setdefault(
            key, Published(*key, np.full((len(SUBSET_NAMES), len(REGION_NAMES)), np.nan))
        )
        # The sources write F for FLAIR.
        parts = ["flair" if part == "F" else part for part in row["available"].split("+")]
        subset = SUBSET_NAMES.index(subset_name(parse_subset("+".join(parts))))
        table.dice[subset, REGION_NAMES.index(row["region"])] = float(row["dice_percent"])
    return list(tables.values())
