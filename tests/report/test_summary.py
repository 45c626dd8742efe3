import re

import numpy as np

from bts_lightning.report.summary import latex, markdown, summarise
from bts_lightning.report.table import EvaluationTable
from tests.report.synthetic import protocol, rows


def summary(made=None, **changes):
    table = EvaluationTable.from_rows(rows(12) if made is None else made)
    return summarise(table, protocol(**changes))


def test_markdown_lists_subsets_in_binary_order_with_means() -> None:
    made = summary()
    lines = [line for line in markdown(made).splitlines() if line.startswith(("| ○", "| ●"))]
    assert len(lines) == 30  # Dice and HD95
    assert lines[0].startswith("| ○ | ○ | ○ | ● |")
    assert lines[14].startswith("| ● | ● | ● | ● |")
    wt = 100 * made.table.grid("dice")[:, 14, 0].mean()
    assert f"{wt:.2f} [" in lines[14]


def test_markdown_has_the_three_averages() -> None:
    made = summary()
    text = markdown(made)
    dice = 100 * made.table.grid("dice").mean(axis=0)
    for title, mean in [
        ("mean over 15", dice.mean(axis=0)),
        ("with T1c (8)", dice[[3, 4, 5, 6, 11, 12, 13, 14]].mean(axis=0)),
        ("without T1c (7)", dice[[0, 1, 2, 7, 8, 9, 10]].mean(axis=0)),
    ]:
        (line,) = re.findall(rf"\*\*{re.escape(title)}\*\*.*%?.*", text.split("## HD95")[0])
        assert f"{mean[2]:.2f} [" in line


def test_policy_is_told_with_the_table() -> None:
    text = markdown(summary(hd95="directed", empty="nan"))
    assert "the larger of the two directed 95th percentiles" in text
    assert "left out of the means" in text


def test_the_part_of_the_split_is_told() -> None:
    split = {"name": "random, seed 0", "fingerprint": "5a17", "part": "val"}
    text = markdown(summary(split=split))
    assert "- split: random, seed 0, part val (fingerprint 5a17)" in text


def test_cases_that_cannot_show_a_subset_are_counted() -> None:
    text = markdown(summary(rows(12, lacking={3: (True, False, True, True)}), unscored=["z9"]))
    assert "1 case acquired without some modality" in text
    assert "1 case without label, not scored: z9." in text
    (line,) = [
        line for line in text.split("## HD95")[0].splitlines() if line[:17] == "| ● | ● | ● | ● |"
    ]
    assert line.endswith("| 11 |")


def test_absent_values_leave_counts_and_not_better_means() -> None:
    made = [row | {"dice": np.nan} if row["region"] == "ET" else row for row in rows(3)]
    text = markdown(summary(made))
    assert "| – | 3/3/0 |" in text
    assert "too narrow" in text  # three patients


def test_few_patients_are_warned_of_however_many_their_scans() -> None:
    made = [row | {"patient": row["case"][:-1]} for row in rows(80)]
    assert "80 cases of 8 patients." in markdown(summary(made))
    assert "too narrow" in markdown(summary(made))
    assert "too narrow" not in markdown(summary(rows(80)))


def test_latex_is_balanced_and_has_all_rows() -> None:
    text = latex(summary())
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(body) == 2 + 15 + 3
    assert all(line.count("&") == 9 for line in body if line.startswith("$"))
    assert r"$\circ$ & $\circ$ & $\circ$ & $\bullet$ &" in text
