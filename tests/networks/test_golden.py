"""The networks give the recorded outputs of the official code (see `tests/golden/README.md`)."""

from pathlib import Path

import numpy as np
import pytest

from tests.golden.fill_rule import fill, make_input
from tests.networks.conformity import Check, files, is_slow, mask_name, network_of, read


def marks(path: Path, index: int, count: int) -> list[pytest.MarkDecorator]:
    """Leave one mask of a small file of each network to the quick tests."""
    quick = path in QUICK and index == count // 2
    return [] if quick else [pytest.mark.slow]


# The last small file of each network that has outputs.
SMALL = [path for path, _ in files() if "masks" in read(path) and not is_slow(path)]
QUICK = {network_of(path): path for path in SMALL}.values()


CASES = [
    pytest.param(
        entry,
        path,
        index,
        id=f"{path.stem}-{mask_name(path, index)}",
        marks=marks(path, index, entry.masks(path)),
    )
    for path, entry in files()
    for index in range(entry.masks(path))
]


@pytest.mark.parametrize(("entry", "path", "index"), CASES)
def test_official_outputs_are_met(entry: Check, path: Path, index: int) -> None:
    missed = [row for row in entry.check(path, index) if not row.passed]
    assert not missed


def test_fill_rule_gives_the_values_of_the_table() -> None:
    values = fill((16, 8, 3, 3, 3), "matrix", 20)
    np.testing.assert_allclose(
        values.flatten()[:4], [-0.1551202, 0.03249301, -0.03196366, 0.00210398], rtol=1e-6
    )
    assert values.sum() == pytest.approx(0.350590, abs=1e-4)
    assert fill((512,), "scale").sum() == pytest.approx(512.037473, abs=1e-3)
    assert fill((32,), "bias").sum() == pytest.approx(-0.042910, abs=1e-5)


def test_input_rule_gives_the_values_of_the_table() -> None:
    image = make_input(32)
    assert image[0, 1, 2, 3, 4] == pytest.approx(1.259381, abs=1e-6)
    assert image.sum(dtype=np.float64) == pytest.approx(16268.1171, abs=1e-3)
