"""The page in a real browser: it starts without a complaint, and what is clicked changes."""

import html
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from bts_lightning.report.page import page
from bts_lightning.report.summary import summarise
from bts_lightning.report.table import EvaluationTable
from tests.report.synthetic import protocol, rows, slices

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--enable-logging=stderr", "--virtual-time-budget=4000", "--dump-dom"),
)
# How many pixels of a canvas are coloured: pictures are grey, contours are not.
COLOURED = """const coloured = (id) => { const c = document.getElementById(id);
  const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; let n = 0;
  for (let i = 0; i < d.length; i += 4) n += Math.abs(d[i] - d[i + 2]) > 30; return n; };"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH")


@pytest.fixture(scope="module")
def table() -> EvaluationTable:
    return EvaluationTable.from_rows(rows(5, lacking={3: (True, True, True, False)}))


@pytest.fixture(scope="module")
def report(table: EvaluationTable) -> str:
    pictures = [slices(name, size=32, depth=12, seed=i) for i, name in enumerate(table.cases[:2])]
    return page(summarise(table, protocol()), pictures)


def browse(folder: Path, content: str, address: str = "", script: str = "") -> str:
    """Load the page, run a script in it once it is there, and give the resulting document back."""
    file = folder / "report.html"
    late = f"<script>addEventListener('load', () => setTimeout(() => {{{script}}}, 300));</script>"
    file.write_text(content.replace("</body>", f"{late}</body>"))
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", f"{file.as_uri()}{address}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env=os.environ | {"HOME": str(folder)},
    )
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert complaints == []
    return done.stdout


def scores(document: str) -> tuple[str, list[str]]:
    """Read the caption and the first column (Dice) of the viewer's table."""
    part = re.search(r'<table id="scores">(.*?)</table>', document, re.DOTALL).group(1)
    caption = html.unescape(re.search("<caption>(.*?)</caption>", part).group(1))
    return caption, re.findall(r'<tr><th scope="row">\w+</th><td>(.*?)</td>', part)


def dice(table: EvaluationTable, case: int, subset: str) -> list[str]:
    values = 100 * table.grid("dice")[case, table.subsets.index(subset)]
    return [f"{value:.1f}" for value in values]


def test_page_opens_with_the_complete_set_of_a_case_with_pictures(
    tmp_path: Path, report: str, table: EvaluationTable
) -> None:
    document = browse(tmp_path, report, script=COLOURED + "document.title = coloured('truth');")
    caption, shown = scores(document)
    assert caption == f"{table.cases[0]} from T1 + T1c + T2 + FLAIR"
    assert shown == dice(table, 0, "t1+t1c+t2+flair")
    assert int(re.search("<title>(.*?)</title>", document).group(1)) > 200  # contours are drawn


def test_address_chooses_case_subset_picture_and_slice(
    tmp_path: Path, report: str, table: EvaluationTable
) -> None:
    address = f"#case={table.cases[1]}&sees=t2%2Bflair&picture=t1c&slice=2"
    document = browse(tmp_path, report, address)
    caption, shown = scores(document)
    assert caption == f"{table.cases[1]} from T2 + FLAIR"
    assert shown == dice(table, 1, "t2+flair")
    assert "The network did not see this T1c picture." in document
    assert re.search('<output id="where">3 of', document)


def test_switching_a_sequence_off_changes_dice_contour_and_gains(
    tmp_path: Path, report: str, table: EvaluationTable
) -> None:
    script = COLOURED + (
        "const before = document.getElementById('predicted').toDataURL();"
        "document.querySelector('#sees input[value=t1c]').click();"
        "document.title = before !== document.getElementById('predicted').toDataURL();"
    )
    document = browse(tmp_path, report, script=script)
    caption, shown = scores(document)
    assert caption.endswith("from T1 + T2 + FLAIR")
    assert shown == dice(table, 0, "t1+t2+flair")
    assert "<title>true</title>" in document
    grid = 100 * table.grid("dice")[0]
    gain = grid[table.subsets.index("t1+t1c+t2+flair")] - grid[table.subsets.index("t1+t2+flair")]
    written = re.search(r"\+ T1c</th><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td>", document)
    values = [float(text.replace("−", "-")) for text in written.groups()]
    np.testing.assert_allclose(values, gain, atol=0.06)


def test_the_last_sequence_cannot_be_switched_off(
    tmp_path: Path, report: str, table: EvaluationTable
) -> None:
    address = f"#case={table.cases[0]}&sees=flair"
    script = "document.querySelector('#sees input[value=flair]').click();"
    assert scores(browse(tmp_path, report, address, script))[0].endswith("from FLAIR")


def test_a_case_without_flair_and_pictures_shows_what_it_has(
    tmp_path: Path, report: str, table: EvaluationTable
) -> None:
    script = "document.title = document.querySelector('#sees input[value=flair]').disabled;"
    document = browse(tmp_path, report, f"#case={table.cases[3]}", script)
    assert scores(document) == (
        f"{table.cases[3]} from T1 + T1c + T2",
        dice(table, 3, "t1+t1c+t2"),
    )
    assert "<title>true</title>" in document
    assert re.search(r'<div class="look" hidden=""', document)


def test_metric_buttons_swap_the_tables(tmp_path: Path, report: str) -> None:
    script = "document.querySelector('input[data-group=metric][value=hd95]').click();"
    document = browse(tmp_path, report, script=script)
    assert re.search('data-metric="dice" hidden', document)
    assert not re.search('data-metric="hd95" hidden', document)


def test_worst_case_leads_to_its_pictures(
    tmp_path: Path, report: str, table: EvaluationTable
) -> None:
    document = browse(
        tmp_path, report, script="document.querySelector('#worst tbody button').click();"
    )
    worst = table.cases[int(np.nanmean(table.grid("dice"), axis=(1, 2)).argmin())]
    assert scores(document)[0].startswith(f"{worst} from")


def test_nothing_is_wider_than_a_phone(tmp_path: Path, report: str) -> None:
    frame = (
        f'<body><iframe id="phone" width="390" height="800" srcdoc="{html.escape(report)}">'
        "</iframe></body>"
    )
    script = (
        "const page = document.getElementById('phone').contentDocument;"
        "document.title = page.querySelectorAll('h2').length"
        " + ' ' + page.documentElement.scrollWidth;"
    )
    document = browse(tmp_path, frame, script=script)
    headings, width = re.search(r"<title>(\d+) (\d+)</title>", document).groups()
    assert int(headings) == 6
    assert int(width) <= 390
