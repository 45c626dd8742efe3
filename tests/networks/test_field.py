"""docs/field.md says what the networks, the data base and `field.yaml` say."""

from pathlib import Path

import pytest

from tests.networks import field, status

PAGE = Path(__file__).parents[2] / "docs" / "field.md"


def test_every_network_and_no_other_system_has_a_row() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert set(status.NETWORKS) <= set(field.facts())
    rows = [line.split(" | ") for line in text.splitlines() if line.count(" | ") > 9]
    assert [cells[0] for cells in rows[2:]] == [f"| {system}" for system in field.facts()]
    assert {len(cells) for cells in rows} == {len(field.COLUMNS)}


def test_a_row_is_written_again_and_others_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    text = PAGE.read_text(encoding="utf-8")
    monkeypatch.setattr(field, "row", lambda system: [system, "anew"])
    written = field.write(text, ["ACN"])
    changed = {*written.splitlines()} - {*text.splitlines()}
    assert changed == {"| ACN | anew |"}


def test_clean_tables_alone_are_told() -> None:
    assert field.published("SMU-Net", "rezazad68/smunet@251f3ad").startswith("BraTS2018 85.9 /")
    assert field.published("MIFPN", "diaoyq121/MIFPN") == "no clean source"
    assert field.published("AMoE-BTS", "") == "–"


@pytest.mark.slow
def test_the_page_is_generated() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert field.write(text, []) == text, "python -m tests.networks.field docs/field.md"
