"""The evaluation table: one row per case × subset × region, read, checked and laid out as grids."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from bts_lightning.errors import DataError, UserError
from bts_lightning.files import regular
from bts_lightning.metrics.table import COUNTS, METRICS, TABLE, VOLUMES, Metric
from bts_lightning.modalities import (
    MODALITIES,
    REGION_WORDS,
    SUBSETS,
    parse_subset,
    subset_name,
)

KEYS = ("case", "subset", "region")
PATIENT = "patient"
# A table from before that column lacks it; BraTS (not 2020 and 2021) and BIDS name scans so.
_SCAN = re.compile(
    r"(?P<patient>BraTS-[A-Z]+-\d+|Brats1[789]_\w+|sub-[a-zA-Z0-9+]+)[-_](ses-[a-zA-Z0-9+]+|\d+)"
)
VALUES = (*METRICS, *VOLUMES, *COUNTS)
# What a table always had; metrics that came later may be absent.
NEEDED = (*KEYS, "dice", "hd95", *VOLUMES)
# Files beside the table have the sum of probabilities, and weights of modalities.
MISSING = {column: ["", "nan", "NaN"] for column in (*VALUES, "probability", *MODALITIES)}
SUBSET_NAMES: tuple[str, ...] = tuple(subset_name(subset) for subset in SUBSETS)


@dataclass(frozen=True)
class EvaluationTable:
    """Hold checked rows with the order of their cases (and the patient of each), subsets, regions.

    >>> EvaluationTable.read(Path("runs/a2fseg/newest/evaluation/test")).grid("dice").shape
    (74, 15, 3)
    """

    rows: pd.DataFrame
    cases: tuple[str, ...]
    patients: tuple[str, ...]
    subsets: tuple[str, ...]
    regions: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> "EvaluationTable":
        """Read `cases.csv`, or the one in an evaluation folder."""
        file = path / "cases.csv" if path.is_dir() else path
        if not file.is_file():
            raise DataError(f"{file}: no such file; `bts evaluate RUN` writes this table")
        return cls.from_rows(read_rows(file), str(file))

    @classmethod
    def from_rows(
        cls, rows: pd.DataFrame | Iterable[Mapping[str, object]], source: str = "evaluation table"
    ) -> "EvaluationTable":
        """Check rows and bring subsets into canonical spelling and order."""
        table = rows.copy() if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
        absent = [column for column in NEEDED if column not in table]
        if absent:
            raise DataError(
                f"{source}: no column {', '.join(absent)}; a table has {','.join(NEEDED)}"
            )
        if table.empty:
            raise DataError(f"{source}: the table has no row, so there is nothing to report")
        values = [column for column in VALUES if column in table]
        table = table.reindex(columns=["case", PATIENT, *KEYS[1:], *values]).reset_index(drop=True)
        table["case"] = table["case"].astype(str)
        table[PATIENT] = _patients(table)
        table["subset"] = [_canonical(name, source) for name in table["subset"]]
        _check_regions(table, source)
        for column in values:
            table[column] = _numbers(table, column, source)
        _check_unique(table, source)
        subsets = tuple(name for name in SUBSET_NAMES if (table["subset"] == name).any())
        regions = tuple(name for name in REGION_WORDS if (table["region"] == name).any())
        patients = _patient_of_each(table, source)
        return cls(table, tuple(patients), tuple(patients.values()), subsets, regions)

    @property
    def metrics(self) -> list[Metric]:
        """The rows of the table of metrics that have a column here."""
        return [metric for metric in TABLE if metric.name in self.rows]

    def grid(self, metric: str) -> np.ndarray:
        """Lay one metric out as case × subset × region; NaN where there is no value."""
        grid = np.full((len(self.cases), len(self.subsets), len(self.regions)), np.nan)
        case = self.rows["case"].map({name: i for i, name in enumerate(self.cases)}).to_numpy(int)
        subset = self.rows["subset"].map({name: i for i, name in enumerate(self.subsets)})
        region = self.rows["region"].map({name: i for i, name in enumerate(self.regions)})
        grid[case, subset.to_numpy(int), region.to_numpy(int)] = self.rows[metric].to_numpy(float)
        return grid

    def shown(self) -> np.ndarray:
        """Say which case × subset has rows: a case without FLAIR cannot show subsets with it."""
        pairs = set(zip(self.rows["case"], self.rows["subset"], strict=True))
        return np.array([[(case, name) in pairs for name in self.subsets] for case in self.cases])


def evaluation_folder(run: Path) -> Path:
    """Find the newest evaluation of a run, or take the evaluation folder that is given."""
    if (run / "cases.csv").is_file():
        return run
    found = [file.parent for file in (run / "evaluation").glob("*/cases.csv")]
    if not found:
        raise UserError(
            f"{run}: no evaluation found; give a run with evaluation/*/cases.csv or such a folder, "
            f"or make one with `bts evaluate {run}`"
        )
    return max(found, key=lambda folder: (folder / "cases.csv").stat().st_mtime)


def read_rows(file: Path, *, skip: int = 0) -> pd.DataFrame:
    """Read rows of the table as they stand; a case may be called 007 or NA: names are text."""
    names = dict.fromkeys((*KEYS, PATIENT), str)
    try:
        with regular(file) as stream:
            return pd.read_csv(
                stream, dtype=names, keep_default_na=False, na_values=MISSING, skiprows=skip
            )
    except (ValueError, OverflowError) as fault:
        raise DataError(f"{file}: not a readable table ({fault}); evaluate again") from fault


def _canonical(name: object, source: str) -> str:
    try:
        return subset_name(parse_subset(str(name)))
    except ValueError as fault:
        raise DataError(f"{source}: {fault}") from fault


def _patients(table: pd.DataFrame) -> list[str]:
    """Take the patients that a table tells; without them its names must, or each case is one."""
    return [
        str(told) if pd.notna(told) and told != "" else named_patient(case)
        for case, told in zip(table["case"], table[PATIENT], strict=True)
    ]


def named_patient(case: str) -> str:
    """Give the patient that the name of a case tells; otherwise each case is one."""
    match = _SCAN.fullmatch(case)
    return match["patient"] if match else case


def _patient_of_each(table: pd.DataFrame, source: str) -> dict[str, str]:
    """Give each case its one patient, cases in order."""
    each = table[["case", PATIENT]].drop_duplicates().sort_values("case")
    twice = each[each.duplicated("case")]
    if len(twice):
        raise DataError(f"{source}: case {twice.iloc[0, 0]!r} shows two patients; give it one")
    return dict(zip(each["case"], each[PATIENT], strict=True))


def _check_regions(table: pd.DataFrame, source: str) -> None:
    unknown = sorted(set(table["region"].astype(str)) - set(REGION_WORDS))
    if unknown:
        raise DataError(
            f"{source}: unknown region {unknown[0]!r}; the regions are {', '.join(REGION_WORDS)}"
        )


def _numbers(table: pd.DataFrame, metric: str, source: str) -> "pd.Series[float]":
    try:
        numbers = pd.to_numeric(table[metric]).astype(float)
    except (ValueError, TypeError) as fault:
        raise DataError(f"{source}: column {metric} holds something other than a number") from fault
    # An infinite distance would vanish from the means or swallow them; a policy gives it a value.
    if np.isinf(numbers).any():
        raise DataError(
            f"{source}: column {metric} holds an infinite value; evaluate with a policy for empty "
            "regions (brats, brats2023 or nan)"
        )
    return numbers


def _check_unique(table: pd.DataFrame, source: str) -> None:
    twice = table[table.duplicated(list(KEYS))]
    if len(twice):
        case, subset, region = twice.iloc[0][list(KEYS)]
        raise DataError(
            f"{source}: case {case!r}, subset {subset}, region {region} is there twice; "
            "each may be scored once, so evaluate again into an empty folder"
        )
