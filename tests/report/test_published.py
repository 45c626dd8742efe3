"""The published tables: which there are, whose they are, and which are known to be wrong."""

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bts_lightning.__main__ import main
from bts_lightning.errors import UserError
from bts_lightning.modalities import REGIONS
from bts_lightning.report.published import averages, dataset_of, read_published, rows, select
from bts_lightning.report.table import SUBSET_NAMES
from tests.report.synthetic import protocol
from tests.report.synthetic import rows as scored


def test_all_published_values_are_there() -> None:
    tables = read_published()
    ablation = [table for table in tables if table.source == "A2FSeg paper, Table 2"]
    values = np.concatenate([table.values for table in tables if table not in ablation])
    # As counted in the data base that they come from.
    assert np.isfinite(values).sum() == 4510
    assert len({table.method for table in tables} - {table.method for table in ablation}) == 62
    assert sum(np.isfinite(t.values).sum() for t in tables if t.quality == "corrupt") == 96
    complete = [table for table in tables if np.isfinite(table.values).all()]
    assert len(complete) == 267
    # Of these, the printed average is that of the cells in all but the ones that the notes tell.
    off = [t for t in complete if abs(t.values[:-1].mean() - t.values[-1]) > 0.15]
    assert {t.quality for t in off} == {"suspicious"}
    assert all("printed" in t.note for t in off)


def test_no_table_stands_there_twice() -> None:
    keys = [(t.method, t.dataset, t.split, t.region, t.metric, t.source) for t in read_published()]
    assert len(keys) == len(set(keys))


def test_corrupt_tables_come_only_when_they_are_asked_for() -> None:
    asked = {"dataset": "fets2024", "method": "robustseg"}
    assert select(**asked) == []
    assert {table.quality for table in select(**asked, corrupt=True)} == {"corrupt"}


def test_a_name_is_found_in_any_letter_case_and_a_wrong_one_told() -> None:
    (one,) = {table.dataset for table in select(dataset="BRATS2018", method="demoseg")}
    assert one == "BraTS2018"
    with pytest.raises(UserError, match="no published region is called WTT: did you mean WT"):
        select(region="WTT")


def test_a_part_of_the_name_of_a_source_does() -> None:
    assert {table.source for table in select(source="Dyh127")} == {"dyh127/RFNet@1e475fa:README.md"}


def test_f_means_flair() -> None:
    (table,) = select(dataset="BraTS2018", method="DeMoSeg", region="WT", metric="dice")
    assert table.of("flair") == 89.53
    assert table.of("t2+flair") == 90.5


def test_rows_of_two_sources_are_never_pooled() -> None:
    found = rows(select(dataset="BraTS2020", method="RFNet"))
    assert len(found) == len({(row.source, row.split) for row in found}) > 1
    assert {row.values["ET"] for row in found} >= {61.47, 59.70}


def test_averages_are_those_that_the_paper_prints() -> None:
    one, two = ({row.method: row for row in averages(f"A2FSeg paper, Table {n}")} for n in (1, 2))
    assert one["A2FSeg"].values == dict(zip(REGIONS, (89.79, 82.72, 66.71), strict=True))
    # The paper prints two of the rows in both.
    assert one["A2FSeg"].values == two["+ adaptive fusion module"].values
    assert two["baseline (average fusion module only)"].values["WT"] == 89.29


def test_a_source_that_nobody_printed_is_refused() -> None:
    with pytest.raises(UserError, match="did you mean A2FSeg paper, Table 2"):
        averages("A2FSeg paper, table 22")


def test_et_with_and_without_t1c_is_as_the_docs_say() -> None:
    tables = [t for t in read_published() if t.source == "A2FSeg paper, Table 1"]
    seen = np.array(["t1c" in name for name in SUBSET_NAMES])
    et = np.stack([table.values[:-1] for table in tables if table.region == "ET"])
    assert seen.sum() == 8
    assert (et[:, seen] > 75).all()
    assert (et[:, seen] < 78.5).all()
    assert (et[:, ~seen] > 37).all()
    assert (et[:, ~seen] < 56.5).all()


@pytest.mark.parametrize(
    ("cases", "expected"),
    [
        (["Brats18_TCIA01_131_1"], "BraTS2018"),
        (["BraTS20_Training_001", "brats20_training_002"], "BraTS2020"),
        (["BraTS-GLI-00000-000", "BraTS-GLI-01234-001"], "BraTS2023"),
        (["BraTS-GLI-02062-100"], "BraTS2024"),
        (["BraTS-GLI-00000-000", "BraTS-GLI-02062-100"], None),
        (["BraTS-MET-00001-000"], None),
        (["patient_7"], None),
    ],
)
def test_names_of_cases_tell_the_data_set(cases: list[str], expected: str | None) -> None:
    assert dataset_of(cases) == expected


def evaluated(folder: Path, start: str) -> Path:
    made = pd.DataFrame(scored(3, prefix=start))
    folder.mkdir()
    made.to_csv(folder / "cases.csv", index=False)
    (folder / "protocol.json").write_text(json.dumps(protocol()))
    return folder


def test_the_report_shows_rows_of_the_same_data_set_alone(tmp_path: Path) -> None:
    folder = evaluated(tmp_path / "known", "BraTS20_Training_")
    assert main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert "published on BraTS2020" in page
    assert "A2FSeg own random 70/10/20" in page
    assert "RFNet list 219/50/100" in page
    assert "RFNet list 3" not in page  # BraTS 2018
    assert "HeMIS ?" in page
    assert "HeMIS suspicious: secondary source" in page
    assert ">78.01<" in page


def test_where_the_names_do_not_tell_the_user_does(tmp_path: Path) -> None:
    folder = evaluated(tmp_path / "unknown", "patient_")
    assert main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert "published on" not in page
    assert "bts report RUN --published brats2020" in page
    assert main(["report", str(folder), "--published", "fets2024"]) == 0
    page = (folder / "report.html").read_text()
    assert "published on FeTS2024" in page
    assert "T1 and T1c are swapped" not in page
    assert main(["report", str(folder), "--published", "fets2024", "--corrupt"]) == 0
    assert "RobustSeg corrupt: printed as RMBTS" in (folder / "report.html").read_text()
    assert main(["report", str(folder), "--published", "brats2022"]) == 2


def test_the_command_prints_and_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["published", "--dataset", "brats2020", "--method", "a2fseg"]
    assert main([*words, "--subset", "T1c", "--region", "et"]) == 0
    printed = capsys.readouterr().out
    assert "BraTS2020, Dice (%), t1c; split: A2FSeg own random 70/10/20" in printed
    assert "78.01" in printed
    assert main([*words, "--csv", str(tmp_path / "a.csv")]) == 0
    with (tmp_path / "a.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 3 * 16
    assert {row["value"] for row in table if row["subset"] == "mean15"} == {
        "89.79",
        "82.72",
        "66.71",
    }
    assert main([*words, "--subset", "t3"]) == 2
    assert main([*words, "--metric", "hd95"]) == 2
    assert "no published number is of that kind" in capsys.readouterr().err
