"""From the report to the viewer: which case, which command, which picture."""

import pytest

from bts_lightning.report.page import page
from bts_lightning.report.see import largest_loss
from bts_lightning.report.summary import summarise
from bts_lightning.report.table import EvaluationTable
from tests.report.synthetic import protocol, rows


@pytest.fixture
def table() -> EvaluationTable:
    return EvaluationTable.from_rows(rows(4))


def test_the_case_that_loses_most_without_t1c_is_found(table: EvaluationTable) -> None:
    changed = table.rows.copy()
    case = table.cases[2]
    hit = (changed["case"] == case) & (changed["subset"] == "t1+t2+flair")
    changed.loc[hit, "dice"] = 0.0
    found = largest_loss(EvaluationTable.from_rows(changed))
    whole = changed[(changed["case"] == case) & (changed["subset"] == "t1+t1c+t2+flair")]
    assert found == (case, pytest.approx(100 * whole["dice"].mean()))


def test_a_table_without_the_subset_names_no_case(table: EvaluationTable) -> None:
    kept = table.rows[table.rows["subset"] != "t1+t2+flair"]
    assert largest_loss(EvaluationTable.from_rows(kept)) is None


def test_the_report_names_the_command_and_shows_the_picture(table: EvaluationTable) -> None:
    summary = summarise(table, protocol(run="runs/a b/1"))
    case, _ = largest_loss(table)
    without = page(summary, [])
    assert f"bts view &#x27;runs/a b/1&#x27; {case} --subset t1+t2+flair" in without
    assert 'class="view"' not in without
    assert 'src="data:image/png;base64,UE5H"' in page(summary, [], view=b"PNG")


def test_an_ensemble_names_no_command(table: EvaluationTable) -> None:
    assert "bts view" not in page(summarise(table, protocol(run="a | b", members=[])), [])
