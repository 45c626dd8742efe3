from base64 import b64decode
from io import BytesIO

import numpy as np
from PIL import Image

from bts_lightning.report.embed import embed, run_lengths
from tests.report.synthetic import slices


def decoded(code: bytes) -> np.ndarray:
    labels: list[int] = []
    token = shift = 0
    for byte in code:
        token |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            labels += [token & 7] * (token >> 3)
            token = shift = 0
    return np.array(labels, np.uint8)


def test_run_lengths_by_hand() -> None:
    # Two 0s, one 3; then 40 ones: 40·8 + 1 = 321 = 65 + 2·128, so 0xC1 0x02.
    assert run_lengths(np.array([0, 0, 3], np.uint8)) == bytes([16, 11])
    assert run_lengths(np.ones(40, np.uint8)) == bytes([0xC1, 0x02])


def test_run_lengths_give_the_labels_back() -> None:
    labels = np.random.default_rng(0).integers(0, 8, (2, 3, 20, 20)).astype(np.uint8)
    labels[1] = 2
    np.testing.assert_array_equal(decoded(run_lengths(labels)), labels.ravel())


def test_pictures_stay_close_to_the_slices() -> None:
    case = slices("a", size=48, depth=12)
    entry = embed([case])["a"]
    data = b64decode(entry["images"][3].partition(",")[2])
    picture = np.asarray(Image.open(BytesIO(data)).convert("L"), float)
    original = case.images[3].reshape(picture.shape)
    assert np.abs(picture - original).mean() < 6


def test_cases_beyond_the_budget_stay_out() -> None:
    cases = [slices(name, size=24, depth=8) for name in "abc"]
    size = sum(len(t) for t in [*embed(cases[:1])["a"]["images"]])
    assert list(embed(cases, budget=4 * size)) != ["a", "b", "c"]
    assert list(embed(cases, budget=10)) == []
    assert list(embed(cases)) == ["a", "b", "c"]
