"""Plots as SVG text, drawn by hand: they need no library, scale, print and follow the theme."""

from collections.abc import Sequence
from html import escape

import numpy as np

from bts_lightning.modalities import MODALITIES, SHOWN_AS, parse_subset

# Distinct in hue and lightness for all common kinds of colour vision, on white and on MRI.
COLOURS = {"WT": "#3b8ed0", "TC": "#e69f00", "ET": "#cc3d7a"}
# Golden ratio: spreads points evenly across a strip without chance.
_SPREAD = 0.6180339887

# A picture that stands alone carries the page's colours with it.
STYLE = """<style>
text{font:11px system-ui,sans-serif;fill:#1c2430}.head{font-weight:600}.dim{fill:#5b6675}
.num{font-variant-numeric:tabular-nums}.grid{stroke:#d5dae1}.line{stroke:#1c2430;fill:none}
.off{fill:none;stroke:#8b95a3}.on{fill:#1c2430}
@media (prefers-color-scheme:dark){text{fill:#e6eaf0}.dim{fill:#9aa5b4}.grid{stroke:#333c48}
.line{stroke:#e6eaf0}.off{stroke:#6b7685}.on{fill:#e6eaf0}}
</style>"""


def svg(width: float, height: float, parts: Sequence[str], label: str, style: str = "") -> str:
    """Wrap drawn parts as one picture that screen readers name."""
    body = "".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'role="img" aria-label="{escape(label)}">{style}{body}</svg>'
    )


def distributions(dice: np.ndarray, subsets: Sequence[str], region: str) -> str:
    """Draw all cases and their quartiles per subset; `dice` is case × subset in percent."""
    left, right, row, top = 62, 300, 23, 22
    scale = _Scale(0, 100, left, right)
    height = top + row * len(subsets) + 6
    parts = scale.axis(top - 6, height - 4, [0, 20, 40, 60, 80, 100])
    parts.append(_text(right + 60, top - 9, "median", "dim", "end"))
    for i, name in enumerate(subsets):
        middle = top + row * (i + 0.5)
        values = dice[:, i][np.isfinite(dice[:, i])]
        parts.append(marks(name, 6, middle))
        if not len(values):
            parts.append(_text(right + 60, middle + 4, "–", "num", "end"))
            continue
        low, median, high = np.percentile(values, [25, 50, 75])
        parts += [
            f"<g><title>{escape(shown(name))}: median {median:.1f}, half of the cases between "
            f"{low:.1f} and {high:.1f}, n {len(values)}</title>",
            _strip(scale, values, middle, row, COLOURS[region]),
            f'<rect x="{scale(low):.1f}" y="{middle - 6:g}" width="{scale(high) - scale(low):.1f}" '
            'height="12" rx="2" class="line"/>',
            f'<path d="M{scale(median):.1f} {middle - 6:g}v12" class="line" stroke-width="2.5"/>',
            "</g>",
            _text(right + 60, middle + 4, f"{median:.1f}", "num", "end"),
        ]
    return svg(362, height, parts, f"{region}: Dice of every case by subset")


def bars(means: np.ndarray, low: np.ndarray, high: np.ndarray, region: str, limit: float) -> str:
    """Draw one bar per modality with its interval; values in points of Dice up to `limit`."""
    left, right, row, top = 46, 222, 30, 4
    scale = _Scale(min([0.0, *means, *low[np.isfinite(low)]]), limit, left, right)
    parts = [f'<path d="M{scale(0):.1f} {top}v{row * len(means)}" class="line"/>']
    for i, modality in enumerate(MODALITIES):
        middle = top + row * (i + 0.5)
        start, end = sorted((scale(0), scale(means[i])))
        parts += [
            _text(left - 8, middle + 4, SHOWN_AS[modality], "", "end"),
            f'<rect x="{start:.1f}" y="{middle - 9:g}" width="{end - start:.1f}" height="18" '
            f'fill="{COLOURS[region]}"/>',
            _text(right + 10, middle + 4, f"{means[i]:.1f}", "num"),
        ]
        if np.isfinite(low[i]):
            parts += [
                _span(scale, low[i], high[i], middle, 'class="line" stroke-width="1.5"'),
                _text(right + 42, middle + 4, f"{low[i]:.1f} to {high[i]:.1f}", "dim num"),
            ]
    label = ", ".join(f"{SHOWN_AS[m]} {v:.1f}" for m, v in zip(MODALITIES, means, strict=True))
    return svg(336, top + row * len(means) + 4, parts, f"{region}: {label}")


def ranges(rows: Sequence[tuple[str, str, float, float, float, str]], limits: np.ndarray) -> str:
    """Draw (heading, title, mean, low, high, colour) lines under one scale, a gap at headings."""
    left, right, row = 122, 300, 22
    low_end, high_end = 10 * np.floor(limits[0] / 10), 10 * np.ceil(limits[1] / 10)
    scale = _Scale(float(low_end), float(high_end), left, right)
    y, parts, heading = 24.0, [], ""
    for name, title, mean, low, high, colour in rows:
        if name != heading:
            y += 6 if heading else 0
            parts.append(_text(4, y + row / 2 + 4, name, "head"))
            heading = name
        middle = y + row / 2
        parts += [
            _text(left - 8, middle + 4, title, "dim", "end"),
            _span(scale, low, high, middle, f'stroke="{colour}" stroke-width="3"'),
            f'<circle cx="{scale(mean):.1f}" cy="{middle:g}" r="5" fill="{colour}"/>',
            _text(right + 46, middle + 4, f"{mean:.1f}", "num", "end"),
        ]
        y += row
    step = 10 if high_end - low_end <= 60 else 20
    ticks = list(np.arange(low_end, high_end + 1, step))
    return svg(350, y + 4, [*scale.axis(18, y, ticks), *parts], "Mean Dice with and without T1c")


def forest(
    panels: Sequence[tuple[str, Sequence[tuple[str, str | None, float, float, float, bool]]]],
    unit: str,
) -> str:
    """Draw differences side by side: a panel per region, a line per subset or average.

    A line is (title, subset or None, mean, low, high, sure); a filled point is a sure difference.
    """
    width, left, right, row, top = 330, 96, 268, 21, 46
    ends = [end for _, lines in panels for line in lines for end in line[2:5] if np.isfinite(end)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    ticks = _round_ticks(low, high)
    parts = []
    for number, (region, lines) in enumerate(panels):
        scale = _Scale(min(low, ticks[0]), max(high, ticks[-1]), left, right)
        bottom = top + row * len(lines)
        drawn = [_text(6, 16, region, "head"), *scale.axis(top - 4, bottom, ticks)]
        drawn.append(f'<path d="M{scale(0):.1f} {top - 4}V{bottom}" class="line"/>')
        for i, line in enumerate(lines):
            drawn += _difference(scale, line, top + row * (i + 0.5), COLOURS[region])
        parts.append(f'<g transform="translate({width * number} 0)">{"".join(drawn)}</g>')
    height = top + row * max(len(lines) for _, lines in panels) + 8
    return svg(width * len(panels), height, parts, f"Difference in {unit} by subset", STYLE)


def marks(subset: str, x: float, y: float) -> str:
    """Draw a subset as four circles, filled where the modality is there."""
    circles = (
        f'<circle cx="{x + 13 * i:g}" cy="{y:g}" r="4" class="{"on" if here else "off"}"/>'
        for i, here in enumerate(parse_subset(subset))
    )
    return f"<g><title>{escape(shown(subset))}</title>{''.join(circles)}</g>"


def signed(value: float) -> str:
    """Write a difference with one decimal and a true minus."""
    return f"{value:+.1f}".replace("-", "−")


def shown(subset: str) -> str:
    """Write a subset for people: `T1c + FLAIR`."""
    present = parse_subset(subset)
    return " + ".join(SHOWN_AS[m] for m, here in zip(MODALITIES, present, strict=True) if here)


class _Scale:
    """Map values to horizontal positions."""

    def __init__(self, low: float, high: float, left: float, right: float) -> None:
        self.low, self.left, self.right = low, left, right
        self.per_unit = (right - left) / ((high - low) or 1.0)

    def __call__(self, value: float) -> float:
        return float(self.left + (value - self.low) * self.per_unit)

    def axis(self, top: float, bottom: float, ticks: Sequence[float]) -> list[str]:
        """Draw thin lines at round values with their numbers above."""
        return [
            f'<path d="M{self(tick):.1f} {top:g}V{bottom:g}" class="grid"/>'
            + _text(self(tick), top - 4, f"{tick:g}".replace("-", "−"), "dim", "middle")
            for tick in ticks
        ]


def _span(scale: _Scale, low: float, high: float, y: float, style: str) -> str:
    """Draw an interval, or nothing where there is none."""
    if not np.isfinite(low):
        return ""
    return f'<path d="M{scale(low):.1f} {y:g}H{scale(high):.1f}" {style}/>'


def _text(x: float, y: float, text: str, style: str = "", anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}">'
        f"{escape(text)}</text>"
    )


def _strip(scale: _Scale, values: np.ndarray, middle: float, row: float, colour: str) -> str:
    across = ((np.arange(len(values)) * _SPREAD) % 1 - 0.5) * (row - 8)
    points = "".join(
        f"M{scale(value):.1f} {middle + offset:.1f}h0"
        for value, offset in zip(values, across, strict=True)
    )
    return (
        f'<path d="{points}" stroke="{colour}" stroke-width="4" stroke-linecap="round" '
        'stroke-opacity=".55"/>'
    )


def _difference(
    scale: _Scale, line: tuple[str, str | None, float, float, float, bool], y: float, colour: str
) -> list[str]:
    title, subset, mean, low, high, sure = line
    head = marks(subset, 38, y) if subset else _text(6, y + 4, title, "dim")
    if not np.isfinite(mean):
        return [head]
    fill = colour if sure else "none"
    return [
        head,
        _span(scale, low, high, y, f'stroke="{colour}" stroke-width="2"'),
        f'<circle cx="{scale(mean):.1f}" cy="{y:g}" r="4.5" fill="{fill}" stroke="{colour}" '
        'stroke-width="2"/>',
        _text(
            scale.right + 54, y + 4, signed(mean) + ("*" if sure and subset else ""), "num", "end"
        ),
    ]


def _round_ticks(low: float, high: float) -> list[float]:
    """Choose about five round values that lie within the range, 0 among them."""
    rough = max(high - low, 1e-9) / 5
    unit = 10.0 ** np.floor(np.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    return [float(step * i) for i in range(int(np.ceil(low / step)), int(high // step) + 1)]
