"""Figures of a sweep as SVG text, as those of a report: curves, points, bars."""

import math
from collections.abc import Sequence
from html import escape

from bts_lightning.report.plots import svg

_BEST, _OTHER, _PRUNED = "#e69f00", "#3b8ed0", "#8b95a3"
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 330, 26, 186
_WIDTH, _HEIGHT = 344, 222
# So many values have room for a tick each.
_FEW = 6

Curve = tuple[str, Sequence[float], str]  # title, values, best | other | pruned
Point = tuple[str, float, float, str]  # title, x, y, best | other | pruned
_COLOURS = {"best": _BEST, "other": _OTHER, "pruned": _PRUNED}


def draw_curves(lines: Sequence[Curve], metric: str) -> str:
    """Draw the metric of every trial over its validations, the best on top."""
    values = [v for _, curve, _ in lines for v in curve]
    longest = max(len(curve) for _, curve, _ in lines)
    across, up = _Axis(1, max(longest, 2), _LEFT, _RIGHT), _Axis.around(values, _BOTTOM, _TOP)
    parts = [*_frame(up, metric, "validation"), *_across(across, _whole(longest))]
    for title, curve, kind in sorted(lines, key=lambda line: line[2] == "best"):
        at = [f"{across(i):.1f} {up(v):.1f}" for i, v in enumerate(curve, 1)]
        width = 2.5 if kind == "best" else 1.2
        style = f'stroke="{_COLOURS[kind]}" stroke-width="{width}" stroke-linecap="round"'
        path = f'<path d="M{"L".join(at)}h0" fill="none" {style}/>'
        parts.append(f"<g><title>{escape(title)}</title>{path}</g>")
    return svg(_WIDTH, _HEIGHT, parts, f"{metric} of every trial over its validations")


def draw_points(points: Sequence[Point], name: str, metric: str, is_logarithmic: bool) -> str:
    """Draw the metric over the values of one parameter; pruned trials on the lower edge."""
    xs = [x for _, x, _, _ in points]
    across = _Axis.around(xs, _LEFT + 10, _RIGHT - 6, is_logarithmic)
    up = _upwards([(y, kind) for _, _, y, kind in points])
    few = sorted(set(xs))
    ticks = few if len(few) <= _FEW else across.ticks()
    parts = [*_frame(up, metric, name), *_across(across, ticks)]
    for title, x, y, kind in sorted(points, key=lambda point: point[3] == "best"):
        parts.append(_dot(title, across(x), up(y), kind))
    return svg(_WIDTH, _HEIGHT, parts, f"{metric} over {name}")


def draw_choices(points: Sequence[tuple[str, str, float, str]], name: str, metric: str) -> str:
    """Draw the metric over choices that have no order; pruned trials on the lower edge."""
    choices = list(dict.fromkeys(choice for _, choice, _, _ in points))
    step = (_RIGHT - _LEFT) / len(choices)
    places = {choice: _LEFT + step * (i + 0.5) for i, choice in enumerate(choices)}
    up = _upwards([(y, kind) for _, _, y, kind in points])
    parts = _frame(up, metric, name)
    letters = max(int(step / 6), 3)
    for choice, x in places.items():
        text = choice if len(choice) <= letters else choice[: letters - 1] + "…"
        parts.append(_text(x, _BOTTOM + 14, text, "dim", "middle"))
    for title, choice, y, kind in sorted(points, key=lambda point: point[3] == "best"):
        parts.append(_dot(title, places[choice], up(y), kind))
    return svg(_WIDTH, _HEIGHT, parts, f"{metric} over {name}")


def draw_shares(shares: Sequence[tuple[str, float]]) -> str:
    """Draw how much of the differences each parameter explains."""
    left, row = 8 + 6.2 * max(len(name) for name, _ in shares), 26
    scale = _Axis(0, 1, left, left + 200)
    parts = []
    for i, (name, share) in enumerate(shares):
        y = 4 + row * i
        parts += [
            _text(left - 8, y + 16, name, "", "end"),
            f'<rect x="{left:.1f}" y="{y + 3}" width="{scale(share) - left:.1f}" height="18" '
            f'fill="{_OTHER}"/>',
            _text(scale(share) + 6, y + 16, f"{100 * share:.0f} %", "num"),
        ]
    told = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares)
    return svg(left + 250, 8 + row * len(shares), parts, f"Importance: {told}")


class _Axis:
    """Map values, perhaps their logarithms, to positions."""

    def __init__(
        self, low: float, high: float, start: float, end: float, is_logarithmic: bool = False
    ) -> None:
        self.low, self.high, self.is_logarithmic = low, high, is_logarithmic
        self._start = start
        self._per_unit = (end - start) / ((self._at(high) - self._at(low)) or 1.0)

    @classmethod
    def around(
        cls, values: Sequence[float], start: float, end: float, is_logarithmic: bool = False
    ) -> "_Axis":
        """Span some values, and a little where there is only one."""
        low, high = min(values), max(values)
        if low == high:
            around = abs(low) / 2 or 0.5
            low, high = low - around, high + around
        return cls(low, high, start, end, is_logarithmic and low > 0)

    def __call__(self, value: float) -> float:
        return self._start + (self._at(value) - self._at(self.low)) * self._per_unit

    def ticks(self) -> list[float]:
        """Choose a few round values within the range."""
        if self.is_logarithmic:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for digits in ((1,), (1, 3), (1, 2, 5)):
                found = [d * 10.0**p for p in powers for d in digits]
                found = [tick for tick in found if self.low <= tick <= self.high]
                if len(found) >= 3:
                    return found
            return [self.low, self.high]
        unit = 10.0 ** math.floor(math.log10((self.high - self.low) / 4))
        step = next(unit * f for f in (1, 2, 5, 10) if unit * f >= (self.high - self.low) / 4)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(step * i, 12) for i in range(first, last + 1)]

    def _at(self, value: float) -> float:
        return math.log(value) if self.is_logarithmic else value


def _upwards(values: Sequence[tuple[float, str]]) -> _Axis:
    """Span the values of finished trials; those of pruned ones were too early to compare."""
    finished = [y for y, kind in values if kind != "pruned"]
    return _Axis.around(finished or [y for y, _ in values], _BOTTOM - 12, _TOP)


def _dot(title: str, x: float, y: float, kind: str) -> str:
    y = _BOTTOM if kind == "pruned" else y
    dot = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{_COLOURS[kind]}"/>'
    return f"<g><title>{escape(title)}</title>{dot}</g>"


def _frame(up: _Axis, metric: str, name: str) -> list[str]:
    """Draw horizontal lines at round values, and say what the axes are."""
    parts = []
    for tick in up.ticks():
        y = up(tick)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_RIGHT}" class="grid"/>')
        parts.append(_text(_LEFT - 6, y + 4, f"{tick:g}", "dim num", "end"))
    parts.append(_text(4, 12, metric, "head"))
    parts.append(_text((_LEFT + _RIGHT) / 2, _HEIGHT - 6, name, "head", "middle"))
    return parts


def _across(axis: _Axis, ticks: Sequence[float]) -> list[str]:
    return [_text(axis(t), _BOTTOM + 14, f"{t:.3g}", "dim num", "middle") for t in ticks]


def _whole(count: int) -> list[float]:
    """Choose whole numbers from 1, about five."""
    step = max(1, round(count / 5))
    return [1.0, *(float(n) for n in range(step, count + 1, step) if n > 1)]


def _text(x: float, y: float, text: str, style: str = "", anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}">'
        f"{escape(text)}</text>"
    )
