"""The guard refuses registrations that went wrong; `tests.preprocess.spoilt` tries more."""

import pytest

from tests.preprocess.spoilt import trial


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "way"),
    [
        ("scan", "turned_by_75"),
        ("scan", "mirrored"),
        ("scan", "halved"),
        ("scan", "stretched"),
        ("scan", "one_wrong_start"),
        ("head", "upside_down"),
        ("head", "one_wrong_start"),
        ("head", "atlas_upside_down"),
    ],
)
def test_a_registration_that_failed_is_refused(kind: str, way: str) -> None:
    found = trial(0, kind, way)
    assert found.is_lost
    assert found.aligned.faults


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["scan", "head"])
def test_a_registration_that_is_right_passes(kind: str) -> None:
    found = trial(0, kind, "untouched")
    assert not found.is_lost
    assert found.aligned.faults == []
