"""Intervals hold what they say and tests find no more than they may, simulated."""

import re
from pathlib import Path

import pytest

from bts_lightning.report.summary import notes, summarise
from bts_lightning.report.table import EvaluationTable
from tests.report.coverage import (
    SCENARIOS,
    TARGET,
    coverage,
    false_alarms,
    percentile_coverage,
    scan_alarms,
    tables,
)
from tests.report.synthetic import protocol, rows

DOCS = Path(__file__).parents[2] / "docs" / "evaluation.md"


@pytest.mark.parametrize("scans", [1, 4])
def test_an_interval_holds_the_mean_of_skewed_dice(scans: int) -> None:
    assert TARGET[0] <= coverage(SCENARIOS[0], 10, scans, 4000) <= TARGET[1]
    assert percentile_coverage(10, scans, 500) < 85


def test_tests_over_patients_find_nothing_that_is_not_there() -> None:
    assert false_alarms(25, 4, 500) <= 6
    assert false_alarms(10, 4, 100, cells=9) <= 6
    assert scan_alarms(25, 4, 100) > 15


@pytest.mark.slow
def test_the_warning_says_what_the_simulation_says() -> None:
    shares = [round(coverage(SCENARIOS[-1], n, 1, min(20_000, 400_000 // n))) for n in (25, 10)]
    assert "HD95" in SCENARIOS[-1].name
    said = notes(summarise(EvaluationTable.from_rows(rows(12)), protocol()))
    warned = next(note for note in said if "too narrow" in note)
    assert [int(share) for share in re.findall(r"(\d+) %", warned)] == shares


@pytest.mark.slow
def test_the_docs_have_the_tables_that_the_command_prints() -> None:
    told = [line for line in DOCS.read_text().splitlines() if line.startswith("|")]
    made = [line for line in tables() if line]
    start = told.index(made[0])
    for old, new in zip(told[start : start + len(made)], made, strict=True):
        names, numbers = zip(*map(_parts, (old, new)), strict=True)
        assert names[0] == names[1]
        # Another processor may round one sample of a thousand to the other side.
        assert all(abs(a - b) <= 1 for a, b in zip(*numbers, strict=True)), new


def _parts(line: str) -> tuple[str, list[int]]:
    name, _, cells = line.removeprefix("|").partition("|")
    return name, [int(number) for number in re.findall(r"\d+", cells)]
