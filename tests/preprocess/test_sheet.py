"""The contact sheet shows what a person must see."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from PIL import Image

from bts_lightning.preprocess.atlas import grid
from bts_lightning.preprocess.folder import Outcome
from bts_lightning.preprocess.page import write_page
from bts_lightning.preprocess.patient import Aligned
from bts_lightning.preprocess.sheet import LINE, OUTLINE, TILE, draw


def aligned(faults: list[str]) -> Aligned:
    """T1c brighter to the left, FLAIR to the right, and a brain that is a box."""
    brain = np.zeros((155, 240, 240), np.uint8)
    brain[40:120, 60:180, 60:180] = 1
    place = {"before": 0.1, "after": 0.5}
    ramp = np.arange(1, 241, dtype=np.float32) * brain
    images = []
    for values in (241 * brain - ramp, ramp, ramp):
        image = sitk.GetImageFromArray(values)
        image.CopyInformation(grid())
        images.append(image)
    mask = sitk.GetImageFromArray(brain)
    mask.CopyInformation(grid())
    facts = {"information": {"t1c": place, "flair": place}, "mask": "atlas", "brain_ml": 1152}
    heads = {"t1c": images[1], "flair": images[0]}
    return Aligned("t1c", images[2], {}, heads, mask, facts, faults)


def is_red(sheet: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return (sheet[..., 0] > 150) & (sheet[..., 1] < 120)


def test_squares_alternate_and_the_outline_follows_the_mask(tmp_path: Path) -> None:
    sheet = np.asarray(Image.open(draw(aligned([]), tmp_path / "sheet.png")))
    assert sheet.shape[1] == 6 * TILE
    # The second row: squares of FLAIR and T1c, dark and bright near the right edge of the box.
    top = 2 * LINE + TILE + LINE
    ends = [int(sheet[top + y, 170, 0]) for y in (75, 105, 135, 165)]
    assert [end > 128 for end in ends] in ([True, False] * 2, [False, True] * 2)
    tile = sheet[top : top + TILE, 3 * TILE : 4 * TILE]
    outlined = (tile == OUTLINE).all(axis=-1)
    rows, columns = np.nonzero(outlined)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (60, 179, 60, 179)
    assert not is_red(sheet).any()


def test_what_is_wrong_stands_below_in_red_and_first_on_the_page(tmp_path: Path) -> None:
    picture = draw(aligned(["T1: mutual information fell"]), tmp_path / "failed.png")
    assert is_red(np.asarray(Image.open(picture))).any()
    outcomes = [
        Outcome("a", "done", {"brain_ml": 1300}),
        Outcome("b<b>", "failed", {}, picture, "T1: mutual information fell: look"),
    ]
    text = write_page(outcomes, tmp_path).read_text()
    assert text.index("b&lt;b&gt;") < text.index(">a<")
    assert "Ready: 1 of 2 patients" in text
    assert "data:image/webp;base64," in text
    assert "not a medical device" in text
