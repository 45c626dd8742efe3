"""The networks give the recorded outputs of the official code (see `tests/golden/README.md`)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bts_lightning.modalities import MODALITIES
from bts_lightning.networks.backbone import Backbone
from tests.golden.fill_rule import fill, make_input
from tests.networks.conformity import Check, Recorded, config_of, files, is_slow, mask_name, plain

CASES = [
    pytest.param(
        entry,
        path,
        index,
        id=f"{path.stem}-{mask_name(path, index)}",
        marks=[pytest.mark.slow] if is_slow(path) else [],
    )
    for path, entry in files()
    for index in range(entry.masks(path))
]


@pytest.mark.parametrize(("entry", "path", "index"), CASES)
def test_official_outputs_are_met(entry: Check, path: Path, index: int) -> None:
    missed = [row for row in entry.check(path, index) if not row.passed]
    assert not missed


OWNED = {
    config_of(path)["network"]: (entry, config_of(path))
    for path, entry in files()
    if isinstance(entry, Recorded) and entry.salt is not plain
}


@pytest.mark.parametrize(("entry", "config"), OWNED.values(), ids=OWNED)
@torch.no_grad()
def test_what_a_modality_owns_encodes_that_modality_alone(
    entry: Recorded, config: dict[str, Any]
) -> None:
    """Plain files cannot see two branches of one shape swapped; `salt` says whose is whose."""
    with torch.device("meta"):
        network = type(entry.build(config))
    net: Backbone = network(**network.small()).eval()
    size = max(16, 2 * net.divisor)
    image, present = torch.randn(1, 4, size, size, size), torch.ones(1, 4, dtype=torch.bool)
    before = net.encode(image, present).levels
    for m in range(len(MODALITIES)):
        owned = [p for name, p in net.named_parameters() if entry.salt(name) // 10 == m + 1]
        kept = [p.clone() for p in owned]
        for p in owned:
            p.add_(torch.randn_like(p))
        after = net.encode(image, present).levels
        for p, value in zip(owned, kept, strict=True):
            p.copy_(value)
        levels = [
            [not torch.equal(x[:, i], y[:, i]) for i in range(len(MODALITIES))]
            for x, y in zip(before, after, strict=True)
        ]
        # A level that a shared encoder makes stays as it is.
        moved = [changed for changed in levels if any(changed)]
        assert moved
        assert all(changed == [i == m for i in range(len(MODALITIES))] for changed in moved)


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
