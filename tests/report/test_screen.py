"""Names are printed as they are."""

from io import StringIO

import pytest
from rich.table import Table

from bts_lightning.errors import visible
from bts_lightning.report.screen import Screen

NAMES = ["[/x]", "a [red]b[/red]", ":smile:", "[link=http://x]y[/link]", "\\[bold]"]


def printed(what: object) -> str:
    text = StringIO()
    Screen(file=text, width=200, force_terminal=True, color_system="truecolor").print(what)
    return text.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_no_style(name: str):
    assert printed(name) == f"{name}\n"
    table = Table("[b]head", title=name)
    table.add_row(name)
    shown = printed(table)
    assert shown.count(name) == 2
    assert "[b]head" in shown


def test_control_characters_are_shown_and_not_sent():
    name = "a\x1b[2Jb\x07\x9bc\udcffd\u202ee"
    said = "a\\x1b[2Jb\\x07\\x9bc\\udcffd\\u202ee"
    assert visible(name) == said
    assert printed(name) == f"{said}\n"
    table = Table("head")
    table.add_row(name)
    assert said in printed(table)
    assert printed("one\n\ttwo é × ●") == "one\n        two é × ●\n"
