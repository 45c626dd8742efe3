import json
import os
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from bts_lightning.__main__ import main
from bts_lightning.commands.compare import compare
from bts_lightning.errors import UserError
from bts_lightning.metrics.table import METRICS
from bts_lightning.report.paired import pair
from bts_lightning.report.screen import Screen
from bts_lightning.report.table import EvaluationTable
from tests.report.synthetic import protocol, rows


def make_run(
    root: Path, name: str, made: list[dict[str, Any]], evaluation: str = "test", **changes: Any
) -> Path:
    """Write a run folder with one evaluation, as `bts evaluate` leaves it."""
    folder = root / name / "evaluation" / evaluation
    folder.mkdir(parents=True)
    pd.DataFrame(made).to_csv(folder / "cases.csv", index=False)
    (folder / "protocol.json").write_text(json.dumps(protocol(experiment=name) | changes))
    return root / name


def shifted(made: list[dict[str, Any]], dice: float) -> list[dict[str, Any]]:
    return [row | {"dice": row["dice"] + dice} for row in made]


def printed(runs: list[Path], out: Path | None = None, width: int = 100) -> str:
    text = StringIO()
    screen = Screen(file=text, width=width, color_system=None, soft_wrap=False)
    assert compare(runs, out, screen) == 0
    return text.getvalue()


def test_difference_is_paired_by_case_and_subset() -> None:
    made = rows(12)
    mixed = [shifted(made, 0.02)[i] for i in np.random.default_rng(0).permutation(len(made))]
    paired = pair(
        EvaluationTable.from_rows(made), EvaluationTable.from_rows(mixed), METRICS["dice"]
    )
    cells = paired.means.cells()
    for end in (cells.mean, cells.low, cells.high):
        np.testing.assert_allclose(end, 2.0)  # points, without any spread
    # Twelve differences of one sign: 2 / 2^12, times the 45 cells; the 9 averages by themselves.
    np.testing.assert_allclose(paired.corrected, 45 * 2 / 2**12)
    np.testing.assert_allclose(paired.averages, 9 * 2 / 2**12)


def test_an_average_is_sure_by_its_test_alone(tmp_path: Path) -> None:
    made = rows(8)
    runs = [make_run(tmp_path, "a", made), make_run(tmp_path, "b", shifted(made, 0.02))]
    # The same in all cases, so the interval leaves out 0; but 9 · 2 / 2^8 is more than 0.05.
    text = printed(runs, tmp_path / "out", width=300)
    assert "With 8 patients no average can reach p < 0.05" in text
    assert "*" not in text.replace("* marks", "")
    table = (tmp_path / "out" / "comparison.md").read_text()
    (line, *_) = [line for line in table.splitlines() if line.startswith("| **mean over 15**")]
    assert line.split(" | ")[1:3] == ["+2.00 [2.00, 2.00]", "0.070"]


def test_scans_of_a_patient_are_paired_as_one(tmp_path: Path) -> None:
    made = [row | {"patient": f"p{int(row['case'][-5:]) // 4}"} for row in rows(48)]
    tables = [EvaluationTable.from_rows(table) for table in (made, shifted(made, 0.02))]
    paired = pair(*tables, METRICS["dice"])
    np.testing.assert_array_equal(paired.means.count, 48)
    np.testing.assert_allclose(paired.corrected, 45 * 2 / 2**12)
    # A table from before the column does not hide them.
    old = [{k: v for k, v in row.items() if k != "patient"} for row in shifted(made, 0.02)]
    runs = [make_run(tmp_path, "new", made), make_run(tmp_path, "old", old)]
    assert "48 cases of 12 patients, paired by case and subset" in printed(runs, width=300)


def test_a_run_does_not_differ_from_its_equal(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, name, rows(12)) for name in ("one", "two")]
    text = printed(runs)
    assert "better than the reference in 0, worse in 0 of 45 cells" in text
    assert "+0.0 [0.0, 0.0]" in text


def test_more_hd95_is_worse(tmp_path: Path) -> None:
    made = rows(12)
    farther = [row | {"hd95": row["hd95"] + 3} for row in made]
    runs = [make_run(tmp_path, "near", made), make_run(tmp_path, "far", farther)]
    text = printed(runs)
    assert "HD95 (mm): better than the reference in 0, worse in 45 of 45 cells" in text


def test_any_metric_of_the_table_can_be_asked_for(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, name, rows(12)) for name in ("one", "two")]
    assert main(["compare", *map(str, runs), "--metric", "precision", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "comparison.md").read_text()
    assert "### Precision (points)" in text
    assert "Dice" not in text
    with pytest.raises(UserError, match="--metric dise is unknown; the metrics are dice, hd95"):
        compare(runs, metrics=["dise"])


def test_tables_from_before_a_metric_are_compared_in_what_they_have(tmp_path: Path) -> None:
    made = rows(12)
    old = [{key: row[key] for key in row if key != "precision"} for row in made]
    runs = [make_run(tmp_path, "new", made), make_run(tmp_path, "old", old)]
    assert "Dice (points)" in printed(runs)
    with pytest.raises(UserError, match="old was evaluated without precision"):
        compare(runs, metrics=["precision"])


def test_files_hold_table_page_and_figures(tmp_path: Path) -> None:
    made = rows(12)
    runs = [make_run(tmp_path, n, shifted(made, d)) for n, d in (("a", 0), ("b", 0.02), ("<c>", 0))]
    printed(runs, tmp_path / "out")
    out = tmp_path / "out"
    assert {file.name for file in out.iterdir()} == {
        "comparison.md",
        "comparison.html",
        *(f"{metric}-{number}.svg" for metric in ("dice", "hd95") for number in (1, 2)),
    }
    for figure in out.glob("*.svg"):
        ElementTree.parse(figure)
    text = (out / "comparison.md").read_text()
    assert "| ○ ○ ○ ● | +2.00* [2.00, 2.00] | 0.022 |" in text
    page = (out / "comparison.html").read_text()
    assert "&lt;c&gt;" in page
    assert "<c>" not in page


def test_names_in_brackets_are_no_markup(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, name, rows(3)) for name in ("a", "[b]")]
    assert "[b] against" in printed(runs, width=200)


def test_files_go_to_a_folder(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, name, rows(3)) for name in ("a", "b")]
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match=r"--out .* is a file; give a folder"):
        compare(runs, tmp_path / "out")


def test_terminal_table_fits_eighty_columns(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "a", rows(12)), make_run(tmp_path, "b", rows(12, noise=7))]
    assert max(map(len, printed(runs, width=80).splitlines())) <= 80


def test_few_cases_are_told(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "a", rows(5)), make_run(tmp_path, "b", rows(5, noise=7))]
    text = printed(runs, width=300)
    assert "With 5 patients no cell can reach p < 0.05 after the correction" in text


def test_values_that_are_not_there_shrink_the_pairs() -> None:
    made = rows(12)
    gone = [
        row | {"dice": np.nan} if (row["case"][-1], row["region"]) == ("3", "ET") else row
        for row in made
    ]
    paired = pair(EvaluationTable.from_rows(made), EvaluationTable.from_rows(gone), METRICS["dice"])
    np.testing.assert_array_equal(paired.means.cells().count[0], [12, 12, 11])
    assert paired.cells == 45


def test_only_common_subsets_are_compared(tmp_path: Path) -> None:
    made = rows(12)
    some = [row for row in made if row["subset"] in ("t1", "flair")]
    text = printed([make_run(tmp_path, "all", made), make_run(tmp_path, "some", some)])
    assert "of 6 cells" in text


def test_an_experiment_stands_for_its_newest_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one/1", "two/1"):
        (make_run(tmp_path / "runs", name, rows(3)) / "config.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "one", "runs/two/1"]) == 0
    assert "two/1 against one/1" in capsys.readouterr().out
    assert main(["compare", "one", "three"]) == 2
    assert "there are runs of: one, two" in capsys.readouterr().err


def test_newest_evaluation_of_a_run_is_taken(tmp_path: Path) -> None:
    made = rows(12)
    reference = make_run(tmp_path, "a", made)
    make_run(tmp_path, "b", shifted(made, 0.05), "older")
    run = make_run(tmp_path, "b", shifted(made, 0.02), "newer")
    os.utime(run / "evaluation" / "older" / "cases.csv", (1, 1))
    assert "+2.0* [2.0, 2.0]" in printed([reference, run])
    assert "+5.0* [5.0, 5.0]" in printed([reference, run / "evaluation" / "older"])


def test_what_differs_in_the_protocol_is_told(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "a", rows(5)), make_run(tmp_path, "b", rows(5), overlap=0.25)]
    assert "overlap: 0.5 → 0.25" in printed(runs, width=300)
    stepped = make_run(tmp_path, "three", rows(5), windows="stepped")
    # What a protocol leaves out is known, and a table from before an option has it too.
    assert "windows: even → stepped" in printed([runs[0], stepped], width=300)


@pytest.mark.parametrize(
    ("made", "changes", "words"),
    [
        (
            rows(5),
            {"split": {"name": "fold 1", "fingerprint": "beef"}},
            "different splits: .*5a17.* and fold 1 .*beef",
        ),
        (rows(5), {"hd95": "directed"}, "different definitions of HD95: pooled and directed"),
        (rows(5), {"empty": "nan"}, "different policies for empty regions: brats and nan"),
        (rows(4), {}, "different cases: 1 only in the first, 0 only in the second, such as"),
        (rows(5, seed=3), {}, "different labels: WT of case 'BraTS2021_00000' has"),
    ],
)
def test_runs_that_do_not_answer_the_same_question_are_refused(
    tmp_path: Path, made: list[dict[str, Any]], changes: dict[str, Any], words: str
) -> None:
    runs = [make_run(tmp_path, "a", rows(5)), make_run(tmp_path, "b", made, **changes)]
    with pytest.raises(UserError, match=words) as refusal:
        compare(runs, tmp_path / "out")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_one_list_of_cases_may_have_two_names(tmp_path: Path) -> None:
    other = {"name": "the same list", "fingerprint": "5a17"}
    printed([make_run(tmp_path, "a", rows(5)), make_run(tmp_path, "b", rows(5), split=other)])


def test_subsets_without_overlap_are_refused(tmp_path: Path) -> None:
    made = rows(3)
    parts = [[r for r in made if r["subset"] == name] for name in ("t1", "t2")]
    runs = [make_run(tmp_path, name, part) for name, part in zip("ab", parts, strict=True)]
    with pytest.raises(UserError, match="share no subset: t1 against t2"):
        compare(runs)


def test_a_run_alone_twice_or_without_evaluation_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", rows(3))
    with pytest.raises(UserError, match="got 1 run, it needs two"):
        compare([run])
    with pytest.raises(UserError, match="given twice"):
        compare([run, run / "evaluation" / "test"])
    with pytest.raises(UserError, match="b: no evaluation found"):
        compare([run, tmp_path / "b"])
