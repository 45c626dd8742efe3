"""The contact sheet of a patient: whether registration and mask are right, seen in five seconds."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from bts_lightning.files import whole
from bts_lightning.modalities import MODALITIES, SHOWN_AS, Modality
from bts_lightning.preprocess.patient import Aligned

Grey = NDArray[np.uint8]
# Pixels: a tile, a line of text, a square of the checkerboard (of 1 mm each), and letters.
TILE, LINE, SQUARE, LETTERS = 240, 24, 30, 14
OUTLINE, BAD, GOOD, PALE = (255, 210, 60), (255, 110, 100), (150, 220, 150), (190, 190, 190)
PLANES = ("axial", "coronal", "sagittal")
# Of the patient, at the left and the right of a tile.
SIDES = (("R", "L"), ("R", "L"), ("A", "P"))


def draw(aligned: Aligned, out: Path) -> Path:
    """Draw each scan on the anchor, and the anchor on the atlas, as checkerboards and outlined."""
    brain = sitk.GetArrayFromImage(aligned.brain) > 0
    at = _middle(brain)
    shown = {m: _slices(head, brain, at) for m, head in aligned.heads.items()}
    template = _slices(aligned.template, sitk.GetArrayViewFromImage(aligned.template) > 0, at)
    outlines = [_outline(_cut(brain, at, axis)) for axis in range(3)]
    order = [aligned.anchor, *(m for m in MODALITIES if m in shown and m != aligned.anchor)]
    below = [*aligned.faults] or [_summary(aligned)]
    height = LINE + len(order) * (TILE + LINE) + len(below) * LINE + 6
    sheet = Image.new("RGB", (6 * TILE, height))
    pen = ImageDraw.Draw(sheet)
    pen.font = ImageFont.load_default(LETTERS)
    for column in range(6):
        what = "checkerboard" if column < 3 else "outline of the mask"
        pen.text((column * TILE + 6, 3), f"{PLANES[column % 3]}, {what}", fill=PALE)
    for row, modality in enumerate(order):
        top = LINE + row * (TILE + LINE)
        other = template if modality == aligned.anchor else shown[aligned.anchor]
        pen.text((6, top + 3), _title(aligned, modality), fill=(255, 255, 255))
        for axis in range(3):
            checked = np.stack([_checkerboard(shown[modality][axis], other[axis])] * 3, axis=-1)
            outlined = np.stack([shown[modality][axis]] * 3, axis=-1)
            outlined[outlines[axis]] = OUTLINE
            for column, tile in ((axis, checked), (3 + axis, outlined)):
                sheet.paste(_tile(tile), (column * TILE, top + LINE))
                left, right = SIDES[axis]
                pen.text((column * TILE + 6, top + LINE + 6), left, fill=PALE)
                pen.text((column * TILE + TILE - 16, top + LINE + 6), right, fill=PALE)
    for number, text in enumerate(below):
        start = height - (len(below) - number) * LINE - 3
        pen.text((6, start), text, fill=BAD if aligned.faults else GOOD)
    with whole(out) as file:
        sheet.save(file, format="PNG")
    return out


def _title(aligned: Aligned, modality: Modality) -> str:
    found = aligned.facts["information"][modality]
    to = "the atlas" if modality == aligned.anchor else SHOWN_AS[aligned.anchor]
    return (
        f"{SHOWN_AS[modality]} and {to}: mutual information {found['before']:.2f} before, "
        f"{found['after']:.2f} after"
    )


def _summary(aligned: Aligned) -> str:
    mask = {"atlas": "by the atlas", "hd-bet": "by HD-BET", "given": "as given"}
    return f"mask {mask[aligned.facts['mask']]}: {aligned.facts['brain_ml']} ml in one piece"


def _middle(brain: NDArray[np.bool_]) -> list[int]:
    """Choose the planes, z y x: through the middle of the brain, where there is one."""
    if not brain.any():
        return [n // 2 for n in brain.shape]
    return [round(middle) for middle in ndimage.center_of_mass(brain)]


def _slices(image: sitk.Image, brain: NDArray[np.bool_], at: list[int]) -> list[Grey]:
    """Cut an image in three planes, bright as its brain is."""
    values = sitk.GetArrayViewFromImage(image)
    inside = values[brain & (values > 0)]
    low, high = np.percentile(inside, (1, 99)) if inside.size else (0.0, float(values.max()) or 1.0)
    cuts = [_cut(values, at, axis).astype(np.float32) for axis in range(3)]
    return [
        (np.clip((cut - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8) for cut in cuts
    ]


def _cut(volume: NDArray[np.generic], at: list[int], axis: int) -> NDArray[np.generic]:
    """Cut a plane as radiologists look at it: front or vertex up, the right at the left."""
    if axis == 0:
        return volume[at[0]]
    return (volume[:, at[1]] if axis == 1 else volume[:, :, at[2]])[::-1]


def _outline(mask: NDArray[np.generic]) -> NDArray[np.bool_]:
    inside = mask.astype(bool)
    return inside & ~ndimage.binary_erosion(inside)


def _checkerboard(one: Grey, other: Grey) -> Grey:
    rows, columns = np.indices(one.shape) // SQUARE
    return np.where((rows + columns) % 2 == 0, one, other)


def _tile(colours: NDArray[np.uint8]) -> Image.Image:
    tile = Image.new("RGB", (TILE, TILE))
    picture = Image.fromarray(np.ascontiguousarray(colours))
    tile.paste(picture, ((TILE - picture.width) // 2, (TILE - picture.height) // 2))
    return tile
