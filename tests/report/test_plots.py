from xml.etree import ElementTree

import numpy as np

from bts_lightning.report.plots import bars, distributions, forest, marks, ranges
from bts_lightning.report.table import SUBSET_NAMES

SPACE = "{http://www.w3.org/2000/svg}"


def test_distribution_draws_every_case_and_prints_the_median() -> None:
    dice = np.linspace(50, 90, 11)[:, None].repeat(15, axis=1)
    dice[0, 0] = np.nan
    picture = ElementTree.fromstring(distributions(dice, SUBSET_NAMES, "WT"))
    strips = [path for path in picture.iter(f"{SPACE}path") if path.get("stroke-linecap")]
    assert [strip.get("d").count("M") for strip in strips] == [10] + [11] * 14
    texts = [text.text for text in picture.iter(f"{SPACE}text")]
    assert texts.count("70.0") == 14
    assert texts.count("72.0") == 1


def test_a_subset_without_any_value_is_a_dash() -> None:
    dice = np.full((3, 1), np.nan)
    picture = ElementTree.fromstring(distributions(dice, ["t1"], "ET"))
    assert "–" in [text.text for text in picture.iter(f"{SPACE}text")]


def test_bars_are_as_long_as_their_values() -> None:
    means = np.array([10.0, 40.0, 0.0, 20.0])
    picture = ElementTree.fromstring(bars(means, means - 1, means + 1, "TC", 41.0))
    widths = [float(rect.get("width")) for rect in picture.iter(f"{SPACE}rect")]
    np.testing.assert_allclose(np.array(widths) / widths[1], means / 40, atol=1e-3)


def test_forest_fills_only_what_is_sure() -> None:
    lines = [("t1", "t1", 2.0, 1.0, 3.0, True), ("t2", "t2", -1.0, -4.0, 2.0, False)]
    picture = ElementTree.fromstring(forest([("WT", lines)], "points"))
    points = [c for c in picture.iter(f"{SPACE}circle") if c.get("stroke-width")]
    assert [point.get("fill") == "none" for point in points] == [False, True]
    texts = [text.text for text in picture.iter(f"{SPACE}text")]
    assert {"+2.0*", "−1.0"} <= set(texts)


def test_ranges_of_equal_values_can_be_drawn() -> None:
    row = ("WT", "mean over 1", 80.0, 80.0, 80.0, "#000000")
    ElementTree.fromstring(ranges([row], np.array([80.0, 80.0])))


def test_marks_fill_the_modalities_that_are_there() -> None:
    circles = list(ElementTree.fromstring(marks("t1c+flair", 0, 0)).iter("circle"))
    assert [circle.get("class") for circle in circles] == ["off", "on", "off", "on"]
