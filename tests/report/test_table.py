from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bts_lightning.errors import DataError
from bts_lightning.metrics.table import METRICS
from bts_lightning.report.folder import write_rows
from bts_lightning.report.table import KEYS, SUBSET_NAMES, VALUES, EvaluationTable, read_rows
from tests.report.synthetic import rows


def one_row(**changes: object) -> dict[str, object]:
    row = dict.fromkeys(VALUES, 0.5) | {"case": "a", "subset": "t1", "region": "WT"}
    return row | changes


def test_table_survives_the_way_through_a_file(tmp_path: Path) -> None:
    made = rows(3)
    pd.DataFrame(made).to_csv(tmp_path / "cases.csv", index=False)
    table = EvaluationTable.read(tmp_path)
    assert table.subsets == SUBSET_NAMES
    np.testing.assert_allclose(
        table.grid("dice"), EvaluationTable.from_rows(made).grid("dice"), rtol=1e-12
    )


def test_case_names_stay_text(tmp_path: Path) -> None:
    names = ["007", "NA", "nan"]
    frame = pd.DataFrame([one_row(case=name) for name in names])
    frame.to_csv(tmp_path / "cases.csv", index=False)
    assert set(EvaluationTable.read(tmp_path).cases) == set(names)


def test_a_case_has_the_patient_that_the_table_tells(tmp_path: Path) -> None:
    made = [one_row(case=case, patient=who) for case, who in (("b", "007"), ("a", "NA"))]
    pd.DataFrame(made).to_csv(tmp_path / "cases.csv", index=False)
    table = EvaluationTable.read(tmp_path)
    assert (table.cases, table.patients) == (("a", "b"), ("NA", "007"))
    assert EvaluationTable.from_rows(table.rows).patients == table.patients


@pytest.mark.parametrize(
    ("case", "patient"),
    [
        ("BraTS-GLI-00005-101", "BraTS-GLI-00005"),
        ("Brats18_TCIA01_131_1", "Brats18_TCIA01_131"),
        ("sub-01_ses-02", "sub-01"),
        ("BraTS20_Training_001", "BraTS20_Training_001"),
        ("BraTS2021_00001", "BraTS2021_00001"),
        ("case-1", "case-1"),
    ],
)
def test_without_patients_a_table_is_read_by_names(case: str, patient: str) -> None:
    for rows_of in ([one_row(case=case)], [one_row(case=case, patient="")]):
        assert EvaluationTable.from_rows(rows_of).patients == (patient,)


def test_the_rows_of_a_case_name_its_patient(tmp_path: Path) -> None:
    scores = {column: np.array([[0.5]]) for column in VALUES}
    write_rows(tmp_path, "a", "p 1", [(True, False, False, False)], ["WT"], scores, "made")
    table = EvaluationTable.from_rows(read_rows(tmp_path / "rows" / "a.csv", skip=1))
    assert (table.cases, table.patients) == (("a",), ("p 1",))


def test_subsets_come_in_binary_order_and_canonical_spelling() -> None:
    table = EvaluationTable.from_rows([one_row(subset="flair+T1c"), one_row(subset="FLAIR")])
    assert table.subsets == ("flair", "t1c+flair")


def test_grid_has_nan_only_where_there_is_no_row() -> None:
    table = EvaluationTable.from_rows([one_row(), one_row(case="b", subset="t2", dice=0.25)])
    dice = table.grid("dice")
    assert np.isfinite(dice).sum() == 2
    assert dice[1, table.subsets.index("t2"), 0] == 0.25
    np.testing.assert_array_equal(table.shown(), [[False, True], [True, False]])


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ([], "no column case"),
        ([{"case": "a"}], "no column subset"),
        ([one_row(subset="t1+pet")], "unknown modality 'pet'"),
        ([one_row(region="NCR")], "unknown region 'NCR'; the regions are WT, TC, ET"),
        ([one_row(dice="high")], "column dice holds something other than a number"),
        ([one_row(hd95=float("inf"))], "column hd95 holds an infinite value"),
        (
            [one_row(patient="x"), one_row(patient="y", subset="t2")],
            "case 'a' shows two patients; give it one",
        ),
        ([one_row(), one_row()], "case 'a', subset t1, region WT is there twice"),
    ],
)
def test_a_wrong_table_is_named(bad: list[dict[str, object]], words: str) -> None:
    with pytest.raises(DataError, match=words):
        EvaluationTable.from_rows(bad)


def test_a_file_that_is_not_there_or_not_a_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cases\.csv: no such file"):
        EvaluationTable.read(tmp_path)
    (tmp_path / "cases.csv").write_bytes(b"\xff\xfe\x00broken")
    with pytest.raises(DataError, match="not a readable table"):
        EvaluationTable.read(tmp_path)
    (tmp_path / "cases.csv").write_text(",".join([*KEYS, *VALUES]) + "\n")
    with pytest.raises(DataError, match="has no row"):
        EvaluationTable.read(tmp_path)


def test_a_table_from_before_a_metric_shows_the_others() -> None:
    table = EvaluationTable.from_rows(
        [{key: value for key, value in one_row().items() if key != "precision"}]
    )
    assert [metric.name for metric in table.metrics] == [n for n in METRICS if n != "precision"]
