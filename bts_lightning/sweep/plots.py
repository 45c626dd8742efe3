"""Figures of a sweep as SVG text, as those of a report: points, bars."""

from collections.abc import Sequence
from typing import Any

from bts_lightning.report.curves import (
    BOTTOM,
    COLOURS,
    HEIGHT,
    LEFT,
    OTHER,
    RIGHT,
    TOP,
    WIDTH,
    frame,
)
from bts_lightning.report.svg import Scale, picture, text, titled

# So many values have room for a tick each.
_FEW = 6

Point = tuple[str, Any, float, str]  # title, x, y, best | other | pruned


def draw_points(points: Sequence[Point], name: str, metric: str, is_logarithmic: bool) -> str:
    """Draw the metric over the values of one parameter; pruned trials on the lower edge."""
    few = sorted({float(x) for _, x, _, _ in points})
    is_wide = few[0] > 0 and few[-1] / few[0] >= 10
    across = Scale.around(few, LEFT + 10, RIGHT - 6, is_logarithmic or is_wide)
    labels = [(across(x), f"{x:.3g}") for x in (few if len(few) <= _FEW else across.ticks())]
    placed = [(title, across(float(x)), y, kind) for title, x, y, kind in points]
    return _scatter(placed, labels, name, metric)


def draw_choices(points: Sequence[Point], name: str, metric: str) -> str:
    """Draw the metric over choices that have no order; pruned trials on the lower edge."""
    choices = list(dict.fromkeys(str(choice) for _, choice, _, _ in points))
    step = (RIGHT - LEFT) / len(choices)
    places = {choice: LEFT + step * (i + 0.5) for i, choice in enumerate(choices)}
    room = max(int(step / 6), 3)
    labels = [(x, c if len(c) <= room else f"{c[: room - 1]}…") for c, x in places.items()]
    placed = [(title, places[str(choice)], y, kind) for title, choice, y, kind in points]
    return _scatter(placed, labels, name, metric)


def draw_shares(shares: Sequence[tuple[str, float]]) -> str:
    """Draw how much of the differences each parameter explains."""
    left, row = 8 + 6.2 * max(len(name) for name, _ in shares), 26
    scale = Scale(0, 1, left, left + 200)
    parts = []
    for i, (name, share) in enumerate(shares):
        y = 4 + row * i
        parts += [
            text(left - 8, y + 16, name, "", "end"),
            f'<rect x="{left:.1f}" y="{y + 3}" width="{scale(share) - left:.1f}" height="18" '
            f'fill="{OTHER}"/>',
            text(scale(share) + 6, y + 16, f"{100 * share:.0f} %", "num"),
        ]
    told = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares)
    return picture(left + 250, 8 + row * len(shares), parts, f"Importance: {told}")


def _scatter(
    points: Sequence[Point], labels: Sequence[tuple[float, str]], name: str, metric: str
) -> str:
    """Draw points that are placed across; the lower edge is for those that ended too early."""
    finished = [y for _, _, y, kind in points if kind != "pruned"]
    up = Scale.around(finished or [y for _, _, y, _ in points], BOTTOM - 12, TOP)
    parts = frame(up, metric, name, labels)
    for title, x, y, kind in sorted(points, key=lambda point: point[3] == "best"):
        height = BOTTOM if kind == "pruned" else up(y)
        dot = f'<circle cx="{x:.1f}" cy="{height:.1f}" r="4.5" fill="{COLOURS[kind]}"/>'
        parts.append(titled(title, dot))
    return picture(WIDTH, HEIGHT, parts, f"{metric} over {name}")
