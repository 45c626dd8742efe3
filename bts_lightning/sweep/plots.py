"""Figures of a sweep as SVG text, as those of a report: curves, points, bars."""

from collections.abc import Sequence
from typing import Any

from bts_lightning.report.svg import Scale, picture, text, titled

_BEST, _OTHER, _PRUNED = "#e69f00", "#3b8ed0", "#8b95a3"
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 330, 26, 186
_WIDTH, _HEIGHT = 344, 222
# So many values have room for a tick each.
_FEW = 6

Curve = tuple[str, Sequence[float], str]  # title, values, best | other | pruned
Point = tuple[str, Any, float, str]  # title, x, y, best | other | pruned
_COLOURS = {"best": _BEST, "other": _OTHER, "pruned": _PRUNED}


def draw_curves(lines: Sequence[Curve], metric: str) -> str:
    """Draw the metric of every trial over its validations, the best on top."""
    values = [v for _, curve, _ in lines for v in curve]
    longest = max(len(curve) for _, curve, _ in lines)
    across, up = Scale(1, max(longest, 2), _LEFT, _RIGHT), Scale.around(values, _BOTTOM, _TOP)
    labels = [(across(n), str(n)) for n in _whole(longest)]
    parts = _frame(up, metric, "validation", labels)
    for title, curve, kind in sorted(lines, key=lambda line: line[2] == "best"):
        at = [f"{across(i):.1f} {up(v):.1f}" for i, v in enumerate(curve, 1)]
        width = 2.5 if kind == "best" else 1.2
        style = f'stroke="{_COLOURS[kind]}" stroke-width="{width}" stroke-linecap="round"'
        path = f'<path d="M{"L".join(at)}h0" fill="none" {style}/>'
        parts.append(titled(title, path))
    return picture(_WIDTH, _HEIGHT, parts, f"{metric} of every trial over its validations")


def draw_points(points: Sequence[Point], name: str, metric: str, is_logarithmic: bool) -> str:
    """Draw the metric over the values of one parameter; pruned trials on the lower edge."""
    few = sorted({float(x) for _, x, _, _ in points})
    is_wide = few[0] > 0 and few[-1] / few[0] >= 10
    across = Scale.around(few, _LEFT + 10, _RIGHT - 6, is_logarithmic or is_wide)
    labels = [(across(x), f"{x:.3g}") for x in (few if len(few) <= _FEW else across.ticks())]
    placed = [(title, across(float(x)), y, kind) for title, x, y, kind in points]
    return _scatter(placed, labels, name, metric)


def draw_choices(points: Sequence[Point], name: str, metric: str) -> str:
    """Draw the metric over choices that have no order; pruned trials on the lower edge."""
    choices = list(dict.fromkeys(str(choice) for _, choice, _, _ in points))
    step = (_RIGHT - _LEFT) / len(choices)
    places = {choice: _LEFT + step * (i + 0.5) for i, choice in enumerate(choices)}
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
            f'fill="{_OTHER}"/>',
            text(scale(share) + 6, y + 16, f"{100 * share:.0f} %", "num"),
        ]
    told = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares)
    return picture(left + 250, 8 + row * len(shares), parts, f"Importance: {told}")


def _scatter(
    points: Sequence[Point], labels: Sequence[tuple[float, str]], name: str, metric: str
) -> str:
    """Draw points that are placed across; the lower edge is for those that ended too early."""
    finished = [y for _, _, y, kind in points if kind != "pruned"]
    up = Scale.around(finished or [y for _, _, y, _ in points], _BOTTOM - 12, _TOP)
    parts = _frame(up, metric, name, labels)
    for title, x, y, kind in sorted(points, key=lambda point: point[3] == "best"):
        height = _BOTTOM if kind == "pruned" else up(y)
        dot = f'<circle cx="{x:.1f}" cy="{height:.1f}" r="4.5" fill="{_COLOURS[kind]}"/>'
        parts.append(titled(title, dot))
    return picture(_WIDTH, _HEIGHT, parts, f"{metric} over {name}")


def _frame(up: Scale, metric: str, name: str, labels: Sequence[tuple[float, str]]) -> list[str]:
    """Draw horizontal lines at round values, and say what the axes are."""
    parts = [text(x, _BOTTOM + 14, label, "dim num", "middle") for x, label in labels]
    for tick in up.ticks():
        y = up(tick)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_RIGHT}" class="grid"/>')
        parts.append(text(_LEFT - 6, y + 4, f"{tick:g}", "dim num", "end"))
    parts.append(text(4, 12, metric, "head"))
    parts.append(text((_LEFT + _RIGHT) / 2, _HEIGHT - 6, name, "head", "middle"))
    return parts


def _whole(count: int) -> list[int]:
    """Choose whole numbers from 1, about five."""
    step = max(1, round(count / 5))
    return [1, *(n for n in range(step, count + 1, step) if n > 1)]
