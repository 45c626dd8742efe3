"""Documents: one content as Markdown and as a page, with nothing that breaks out of its place."""

from pathlib import Path

from bts_lightning.report.document import Document, Sheet, item, plain, shell

NASTY = "a|b\n<script>x</script>"


def test_markdown_marks_sums_and_aligns() -> None:
    sheet = Sheet("T", ["a", "b", "why"], [["x", "1", "so"], ["mean", "2", ""]], ["note"], 1)
    prose = Sheet("P", ["a", "b", "why"], [["x", "1", "so"]], is_prose=True)
    assert Document("D", ["found"], [sheet, prose]).markdown().splitlines()[2:] == [
        *("- found", "", "## T", "", "| a | b | why |", "|---|---:|---:|", "| x | 1 | so |"),
        *("| **mean** | 2 |  |", "", "note", "", "## P", ""),
        *("| a | b | why |", "|---|---:|---|", "| x | 1 | so |"),
    ]
    assert sheet.rows[1][0] == "mean"


def test_figures_are_for_the_page_and_their_rows_for_markdown() -> None:
    drawn = Sheet("Drawn", ["a"], [["row"]], figures=["<svg></svg>"])
    only = Sheet("Only", figures=["<svg></svg>"])
    result = Document("D", [], [drawn, only])
    page, text = result.html(), result.markdown()
    assert page.count("<figure><svg>") == 2
    assert ">row<" not in page
    assert "| row |" in text
    assert "Only" not in text


def test_what_others_named_stays_a_text() -> None:
    sheet = Sheet(NASTY, [NASTY], [[NASTY]], [NASTY])
    result = Document(NASTY, [NASTY], [sheet], lead=NASTY)
    page, text = result.html(), result.markdown()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 8
    assert "<script" not in text
    assert text.count(r"a\|b &lt;script>x&lt;/script>") == 7


def test_less_than_is_no_tag_and_a_plus_no_list() -> None:
    assert (
        plain("p <0.001, p < 0.05, <b>, </b>, <!--")
        == "p <0.001, p < 0.05, &lt;b>, &lt;/b>, &lt;!--"
    )
    assert item("+ teacher") == r"- \+ teacher"
    assert item("+1.2 points") == "- +1.2 points"


def test_both_forms_are_written_and_link_to_their_own_kind(tmp_path: Path) -> None:
    result = Document("D", [], [], {"Tests": "comparison/comparison"})
    page = result.write(tmp_path / "result")
    assert page == tmp_path / "result.html"
    assert '<a href="comparison/comparison.html">' in page.read_text()
    text = (tmp_path / "result.md").read_text()
    assert "- Tests: [comparison/comparison.md](comparison/comparison.md)" in text


def test_a_page_may_load_nothing() -> None:
    plain_page, with_scripts = shell("T", ""), shell("T", "", with_scripts=True)
    assert "default-src 'none'" in plain_page
    assert "script-src" not in plain_page
    assert "default-src 'none'" in with_scripts
    assert "script-src 'unsafe-inline'" in with_scripts
