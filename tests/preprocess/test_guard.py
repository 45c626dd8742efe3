"""The guard refuses registrations that went wrong; `tests.preprocess.spoilt` tries more."""

import pytest

from tests.preprocess.spoilt import trial


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "way"),
    [
        ("scan", "upside_down"),
        ("scan", "mirrored"),
        ("scan", "halved"),
        ("scan", "stretched"),
        ("head", "upside_down"),
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
