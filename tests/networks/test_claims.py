"""What README.md claims of each network is what the tests compare."""

from pathlib import Path

import pytest

from tests.networks import claims

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_table_of_the_readme_is_generated() -> None:
    assert claims.write(README) == README, "python -m tests.networks.claims README.md"


def test_every_network_is_told_of() -> None:
    assert not claims.left_out()


def test_what_no_file_shows_is_claimed_of_nobody() -> None:
    assert claims.compared("") == claims.learned("", "") == "nothing"
    assert claims.compared("uhved") == "a third party's port"
    assert claims.compared("amoe_gam") == "official code with one change"
    assert claims.learned("a2fseg_base", "") == "nothing"
    assert claims.learned("acn", "") == "losses"
    with pytest.raises(AssertionError, match="gone"):
        claims.compared("gone")
