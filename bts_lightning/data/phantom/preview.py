"""A contact sheet of cases: four modalities and the label over FLAIR, one case a row."""

from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from bts_lightning.files import whole
from bts_lightning.modalities import BACKGROUND, MODALITIES, OEDEMA, SHOWN_AS, Modality

# Colours of NCR/NET, ED, ET and a cavity, as papers show them.
COLOURS = [(0, 0, 0), (230, 60, 60), (70, 190, 90), (250, 210, 60), (70, 130, 230)]
TILE, TITLE = 240, 18


def contact_sheet(
    cases: dict[str, tuple[dict[Modality, Path], Path]], values: Mapping[int, int], out: Path
) -> Path:
    """Draw each case's slice with most core, seen from below as radiologists do; save a PNG.

    Args:
        values: value in the label's file -> tissue.
    """
    tissue = np.zeros(max(values) + 1, np.uint8)
    tissue[list(values)] = list(values.values())
    rows = []
    for images, label_path in cases.values():
        stored, edges = _load(label_path)
        label = tissue[stored.astype(np.uint8)]
        height = _best_slice(label)
        slices = [_window(_load(images[modality])[0], height) for modality in MODALITIES]
        tiles = [_tile(x, edges) for x in slices]
        rows.append([*tiles, _tile(_overlay(slices[-1], label[:, :, height]), edges)])
    columns = len(MODALITIES) + 1
    sheet = Image.new("RGB", (columns * TILE, TITLE + len(rows) * TILE))
    pen = ImageDraw.Draw(sheet)
    for i, text in enumerate([*(SHOWN_AS[m] for m in MODALITIES), "label"]):
        pen.text((i * TILE + 6, 3), text, fill=(255, 255, 255))
    for j, (name, row) in enumerate(zip(cases, rows, strict=True)):
        for i, tile in enumerate(row):
            sheet.paste(tile, (i * TILE, TITLE + j * TILE))
        pen.text((6, TITLE + j * TILE + 3), name, fill=(150, 150, 150))
    with whole(out) as file:
        sheet.save(file, format="PNG")
    return out


def _load(path: Path) -> tuple[NDArray[np.float32], tuple[float, float]]:
    image = nib.Nifti1Image.from_filename(path)
    across, down, _ = image.header.get_zooms()[:3]
    return np.asanyarray(image.dataobj, dtype=np.float32), (float(across), float(down))


def _best_slice(label: NDArray[np.uint8]) -> int:
    core = (label != BACKGROUND) & (label != OEDEMA)
    shown = core if core.any() else label != 0
    return int(np.argmax(shown.sum(axis=(0, 1)))) if shown.any() else label.shape[2] // 2


def _window(image: NDArray[np.float32], height: int) -> NDArray[np.uint8]:
    brain = image[image > 0]
    low, high = np.percentile(brain, (0.5, 99.7)) if brain.size else (0.0, 1.0)
    shown = np.clip((image[:, :, height] - low) / max(high - low, 1e-6), 0, 1)
    return (255 * np.where(image[:, :, height] > 0, shown, 0)).astype(np.uint8)


def _overlay(shown: NDArray[np.uint8], label: NDArray[np.uint8]) -> NDArray[np.uint8]:
    colour = np.stack([shown] * 3, axis=-1).astype(np.float32)
    for value, rgb in enumerate(COLOURS[1:], 1):
        colour[label == value] = 0.55 * colour[label == value] + 0.45 * np.array(rgb)
    return colour.astype(np.uint8)


def _tile(shown: NDArray[np.uint8], edges: tuple[float, float]) -> Image.Image:
    """Fit a slice into a tile at its true proportions; rows run back, columns to the left."""
    picture = Image.fromarray(np.ascontiguousarray(shown.swapaxes(0, 1)))
    width, height = (n * edge for n, edge in zip(shown.shape[:2], edges, strict=True))
    scale = TILE / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    tile = Image.new("RGB", (TILE, TILE))
    tile.paste(picture.resize(size, Image.Resampling.BICUBIC))
    return tile
