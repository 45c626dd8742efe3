"""The cells of a validation, subset × metric × region, as one table and one picture."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from bts_lightning.modalities import SUBSETS, subset_name

_NAMES = [subset_name(subset) for subset in SUBSETS]
_CELL = re.compile(rf"val/({'|'.join(map(re.escape, _NAMES))})/([^/]+)/([^/]+)")
_WIDE, _HIGH, _HEADS = 64, 22, 130
# Of no overlap and of a perfect one; the same in every validation, so that pictures compare.
_LOW, _HIGH_COLOUR = (247, 251, 255), (33, 113, 181)


def cells_among(metrics: Mapping[str, float]) -> dict[str, tuple[str, str, str, float]]:
    """Find the cells among logged metrics: subset, metric, region and value of each."""
    found = {name: _CELL.fullmatch(name) for name in metrics}
    return {
        name: (cell[1], cell[2], cell[3], float(metrics[name]))
        for name, cell in found.items()
        if cell
    }


def table_of(
    cells: Mapping[str, tuple[str, str, str, float]],
) -> tuple[list[str | int], list[Iterable[Any]]]:
    """Lay cells out with a subset a row; gives the heads and the rows."""
    values = {(subset, f"{metric} {region}"): v for subset, metric, region, v in cells.values()}
    columns = list(dict.fromkeys(column for _, column in values))
    subsets = [name for name in _NAMES if any(name == subset for subset, _ in values)]
    rows = [[name, *(values.get((name, column)) for column in columns)] for name in subsets]
    return ["subset", *columns], list(rows)


def heat_map(cells: Mapping[str, tuple[str, str, str, float]]) -> Image.Image:
    """Draw the Dice of each subset and region in percent, deeper blue for more."""
    heads, rows = table_of({k: cell for k, cell in cells.items() if cell[1] == "dice"})
    picture = Image.new(
        "RGB", (_HEADS + _WIDE * (len(heads) - 1), _HIGH * (1 + len(rows))), "white"
    )
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    for j, head in enumerate(heads[1:]):
        pen.text((_HEADS + _WIDE * (j + 0.5), _HIGH / 2), str(head).split()[1], "black", font, "mm")
    for i, (name, *values) in enumerate(rows, 1):
        pen.text((_HEADS - 6, _HIGH * (i + 0.5)), str(name), "black", font, "rm")
        for j, value in enumerate(values):
            if not isinstance(value, float):
                continue
            x, y = _HEADS + _WIDE * j, _HIGH * i
            fill = tuple(
                round(low + value * (high - low))
                for low, high in zip(_LOW, _HIGH_COLOUR, strict=True)
            )
            pen.rectangle((x, y, x + _WIDE - 1, y + _HIGH - 1), fill)
            ink = "white" if value > 0.55 else "black"
            pen.text((x + _WIDE / 2, y + _HIGH / 2), f"{100 * value:.1f}", ink, font, "mm")
    return picture
