"""Trainings repeat what the official programs did (see `tests/golden_train/README.md`)."""

from pathlib import Path

import pytest

from tests.networks.conformity import config_of
from tests.networks.golden_train.files import check, files

TRAININGS = [path for path in files() if "schedules" not in path.stem and "uhved" not in path.stem]
OTHERS = [path for path in files() if path not in TRAININGS]


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.stem)
def test_rates_and_losses_are_met(path: Path) -> None:
    assert [row for row in check(path) if not row.passed] == []


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[pytest.mark.slow] if "mmformer" in path.stem else [])
        for path in TRAININGS
        if config_of(path)["dtype"] == "float64" and config_of(path)["size"] <= 32
    ],
    ids=lambda path: path.stem,
)
def test_the_first_step_has_the_official_loss_and_gradient(path: Path) -> None:
    assert [row for row in check(path, steps=1) if not row.passed] == []


@pytest.mark.slow
@pytest.mark.parametrize("path", TRAININGS, ids=lambda path: path.stem)
def test_the_training_goes_the_official_way(path: Path) -> None:
    assert [row for row in check(path) if not row.passed] == []
