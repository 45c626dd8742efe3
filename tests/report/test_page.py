import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bts_lightning.__main__ import main
from bts_lightning.errors import DataError
from bts_lightning.report.page import findings, page
from bts_lightning.report.summary import summarise
from bts_lightning.report.table import EvaluationTable
from bts_lightning.report.write import choose_cases, write_report
from tests.report.balance import Balance
from tests.report.synthetic import protocol, rows, slices

EVIL = "</script><b>&\"'"


def written(made=None, pictures=(), **changes) -> str:
    table = EvaluationTable.from_rows(rows(6) if made is None else made)
    return page(summarise(table, protocol(**changes)), pictures)


def test_page_is_well_formed_and_needs_no_network() -> None:
    text = written(pictures=[slices("BraTS2021_00001", size=24, depth=8)])
    parser = Balance()
    parser.feed(text)
    assert parser.open == []
    assert all(address.startswith("#") for address in parser.addresses)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert "$" not in re.sub(r"<script.*", "", text, flags=re.DOTALL)


def test_a_scheme_that_nobody_knows_is_refused() -> None:
    with pytest.raises(DataError, match="scheme is 'cavety'; did you mean cavity"):
        written(scheme="cavety")


def test_lesions_are_counted_by_subset_and_by_size() -> None:
    made = [r | {"lesions": 2, "found": 1, "false_lesions": 3} for r in rows(2)]
    summary = summarise(EvaluationTable.from_rows(made), protocol(lesions="brats2023"))
    one = {"case": "a", "subset": "t1", "region": "ET", "counts": 1, "dice": 0, "hd95": 0}
    each = pd.DataFrame([one | {"mm3": mm3, "found": f} for mm3, f in ((50, 0), (99, 1), (2e3, 1))])
    text = page(summary, [], {"lesions": each})
    parser = Balance()
    parser.feed(text)
    assert parser.open == []
    # One of them is shown, by the region that is chosen.
    assert set(re.findall('data-lesion="([^"]*)"', text)) == {"WT", "TC", "ET"}
    assert "<td>4</td><td>2</td><td>50 %</td><td>6</td>" in text
    assert "<td>50 % of 2</td><td>–</td><td>100 % of 1</td><td>–</td>" in text
    assert 'id="lesions"' not in written()


def test_names_cannot_become_markup() -> None:
    made = [row | {"case": EVIL} if row["case"].endswith("2") else row for row in rows(4)]
    text = written(made, experiment=EVIL, unscored=[EVIL])
    assert EVIL not in text
    assert text.count("<script") == text.count("</script>") == 2
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL).group(1))
    assert EVIL in [case["name"] for case in data["cases"]]


def test_numbers_of_the_page_are_those_of_the_table() -> None:
    made = rows(6)
    text = written(made)
    frame = pd.DataFrame(made)
    chosen = frame[(frame["subset"] == "t1c+flair") & (frame["region"] == "TC")]
    assert f">{100 * chosen['dice'].mean():.1f}<small>" in text
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL).group(1))
    index = data["subsets"].index("t1c+flair")
    np.testing.assert_allclose(
        [case["dice"][index][1] for case in data["cases"]], chosen["dice"], atol=1e-4
    )
    shares = np.array([case["shapley"] for case in data["cases"]])
    complete = np.array([case["dice"][14] for case in data["cases"]])
    np.testing.assert_allclose(shares.sum(axis=-1), 100 * complete, atol=0.03)


def test_nothing_is_lost_where_all_four_are_the_worst() -> None:
    made = [row | {"dice": 0.0} if row["subset"].count("+") == 3 else row for row in rows(3)]
    said = findings(summarise(EvaluationTable.from_rows(made), protocol()))
    assert not [sentence for sentence in said if "worst subset" in sentence]


def test_published_numbers_come_with_their_warning() -> None:
    assert "splits, preprocessing, training recipe" in written()


@pytest.mark.parametrize(
    "made",
    [
        rows(1),
        [row for row in rows(3) if row["subset"] in ("t1", "t1+t2")],
        [row for row in rows(2) if row["subset"] == "flair"],
        [
            row | {"dice": np.nan, "hd95": np.nan} if row["region"] == "ET" else row
            for row in rows(3)
        ],
        [row | {"dice": np.nan, "hd95": np.nan} for row in rows(2)],
        rows(3, lacking=dict.fromkeys(range(3), (True, True, True, False))),
    ],
    ids=["one case", "two subsets", "one subset", "no ET at all", "no value at all", "no FLAIR"],
)
def test_poor_tables_make_a_page_too(made: list[dict[str, object]]) -> None:
    text = written(made)
    parser = Balance()
    parser.feed(text)
    assert parser.open == []
    assert ">nan" not in text.lower()


def test_two_hundred_cases_with_pictures_stay_under_ten_megabytes() -> None:
    made = rows(200)
    pictures = [slices(f"BraTS2021_{i:05d}", size=64, depth=24) for i in range(2)]
    assert len(written(made, pictures)) < 4e6


def test_report_can_be_written_again_from_its_files(tmp_path: Path) -> None:
    pd.DataFrame(rows(4)).to_csv(tmp_path / "cases.csv", index=False)
    (tmp_path / "protocol.json").write_text(json.dumps(protocol()))
    report = write_report(tmp_path)
    first = report.read_bytes()
    assert write_report(tmp_path).read_bytes() == first
    assert {file.name for file in tmp_path.iterdir()} == {
        "cases.csv",
        "protocol.json",
        "report.html",
        "summary.md",
        "summary.tex",
    }


def test_command_writes_the_newest_evaluation_of_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "evaluation" / "test"
    folder.mkdir(parents=True)
    pd.DataFrame(rows(3)).to_csv(folder / "cases.csv", index=False)
    (folder / "protocol.json").write_text(json.dumps(protocol()))
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    assert main(["report", str(tmp_path / "other")]) == 2
    assert "no evaluation found" in capsys.readouterr().err


def test_a_folder_without_protocol_is_refused(tmp_path: Path) -> None:
    pd.DataFrame(rows(2)).to_csv(tmp_path / "cases.csv", index=False)
    with pytest.raises(DataError, match=r"protocol\.json: no such file"):
        write_report(tmp_path)
    (tmp_path / "protocol.json").write_text("{broken")
    with pytest.raises(DataError, match="not readable as JSON"):
        write_report(tmp_path)


def test_the_worst_cases_are_always_shown() -> None:
    table = EvaluationTable.from_rows(rows(40))
    chosen = choose_cases(table, 12)
    ranked = [table.cases[i] for i in np.argsort(table.grid("dice").mean(axis=(1, 2)))]
    assert chosen[:4] == ranked[:4]
    assert chosen[-1] == ranked[-1]
    assert len(set(chosen)) == 12
