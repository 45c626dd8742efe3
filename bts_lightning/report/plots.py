"""The plots of a report: spread over cases, bars, intervals and differences."""

from collections.abc import Sequence

import numpy as np

from bts_lightning.modalities import MODALITIES, SHOWN_AS, parse_subset
from bts_lightning.report.svg import STYLE, Scale, picture, round_values, text, titled

# Distinct in hue and lightness for all common kinds of colour vision, on white and on MRI.
COLOURS = {
    "WT": "#3b8ed0",
    "TC": "#e69f00",
    "ET": "#cc3d7a",
    "RC": "#3a9d6e",
    "NETC": "#8a63c7",
    "CC": "#3a9d6e",
    "ED": "#7a7a7a",
    "GTV": "#cc3d7a",
}
# Golden ratio: spreads points evenly across a strip without chance.
_SPREAD = 0.6180339887


def distributions(dice: np.ndarray, subsets: Sequence[str], region: str) -> str:
    """Draw all cases and their quartiles per subset; `dice` is case × subset in percent."""
    left, right, row, top = 62, 300, 23, 22
    scale = Scale(0, 100, left, right)
    height = top + row * len(subsets) + 6
    parts = scale.axis(top - 6, height - 4, [0, 20, 40, 60, 80, 100])
    parts.append(text(right + 60, top - 9, "median", "dim", "end"))
    for i, name in enumerate(subsets):
        middle = top + row * (i + 0.5)
        values = dice[:, i][np.isfinite(dice[:, i])]
        parts.append(marks(name, 6, middle))
        if not len(values):
            parts.append(text(right + 60, middle + 4, "–", "num", "end"))
            continue
        low, median, high = np.percentile(values, [25, 50, 75])
        parts += [
            titled(
                f"{shown(name)}: median {median:.1f}, half of the cases between {low:.1f} and "
                f"{high:.1f}, n {len(values)}",
                _strip(scale, values, middle, row, COLOURS[region]),
                f'<rect x="{scale(low):.1f}" y="{middle - 6:g}" '
                f'width="{scale(high) - scale(low):.1f}" height="12" rx="2" class="line"/>',
                f'<path d="M{scale(median):.1f} {middle - 6:g}v12" class="line" '
                'stroke-width="2.5"/>',
            ),
            text(right + 60, middle + 4, f"{median:.1f}", "num", "end"),
        ]
    return picture(362, height, parts, f"{region}: Dice of every case by subset")


def bars(means: np.ndarray, low: np.ndarray, high: np.ndarray, region: str, limit: float) -> str:
    """Draw one bar per modality with its interval; values in points of Dice up to `limit`."""
    left, right, row, top = 46, 222, 30, 4
    scale = Scale(min([0.0, *means, *low[np.isfinite(low)]]), limit, left, right)
    parts = [f'<path d="M{scale(0):.1f} {top}v{row * len(means)}" class="line"/>']
    for i, modality in enumerate(MODALITIES):
        middle = top + row * (i + 0.5)
        start, end = sorted((scale(0), scale(means[i])))
        parts += [
            text(left - 8, middle + 4, SHOWN_AS[modality], "", "end"),
            f'<rect x="{start:.1f}" y="{middle - 9:g}" width="{end - start:.1f}" height="18" '
            f'fill="{COLOURS[region]}"/>',
            text(right + 10, middle + 4, f"{means[i]:.1f}", "num"),
        ]
        if np.isfinite(low[i]):
            parts += [
                _span(scale, low[i], high[i], middle, 'class="line" stroke-width="1.5"'),
                text(right + 42, middle + 4, f"{low[i]:.1f} to {high[i]:.1f}", "dim num"),
            ]
    label = ", ".join(f"{SHOWN_AS[m]} {v:.1f}" for m, v in zip(MODALITIES, means, strict=True))
    return picture(336, top + row * len(means) + 4, parts, f"{region}: {label}")


def ranges(rows: Sequence[tuple[str, str, float, float, float, str]], limits: np.ndarray) -> str:
    """Draw (heading, title, mean, low, high, colour) lines under one scale, a gap at headings."""
    left, right, row = 122, 300, 22
    low_end, high_end = 10 * np.floor(limits[0] / 10), 10 * np.ceil(limits[1] / 10)
    scale = Scale(float(low_end), float(high_end), left, right)
    y, parts, heading = 24.0, [], ""
    for name, title, mean, low, high, colour in rows:
        if name != heading:
            y += 6 if heading else 0
            parts.append(text(4, y + row / 2 + 4, name, "head"))
            heading = name
        middle = y + row / 2
        parts += [
            text(left - 8, middle + 4, title, "dim", "end"),
            _span(scale, low, high, middle, f'stroke="{colour}" stroke-width="3"'),
            f'<circle cx="{scale(mean):.1f}" cy="{middle:g}" r="5" fill="{colour}"/>',
            text(right + 46, middle + 4, f"{mean:.1f}", "num", "end"),
        ]
        y += row
    step = 10 if high_end - low_end <= 60 else 20
    ticks = list(np.arange(low_end, high_end + 1, step))
    return picture(
        350, y + 4, [*scale.axis(18, y, ticks), *parts], "Mean Dice with and without T1c"
    )


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
    ticks = round_values(low, high, 5)
    parts = []
    for number, (region, lines) in enumerate(panels):
        scale = Scale(min(low, ticks[0]), max(high, ticks[-1]), left, right)
        bottom = top + row * len(lines)
        drawn = [text(6, 16, region, "head"), *scale.axis(top - 4, bottom, ticks)]
        drawn.append(f'<path d="M{scale(0):.1f} {top - 4}V{bottom}" class="line"/>')
        for i, line in enumerate(lines):
            drawn += _difference(scale, line, top + row * (i + 0.5), COLOURS[region])
        parts.append(f'<g transform="translate({width * number} 0)">{"".join(drawn)}</g>')
    height = top + row * max(len(lines) for _, lines in panels) + 8
    return picture(width * len(panels), height, parts, f"Difference in {unit} by subset", STYLE)


def reliability(bins: np.ndarray, region: str) -> str:
    """Draw the truth's share against the mean probability of each bin; bins × (voxels, sums)."""
    left, right, top, bottom, foot = 40, 240, 14, 214, 34
    x, y = Scale(0, 1, left, right), Scale(0, 1, bottom, top)
    parts = [f'<path d="M{x(0):g} {y(0):g}L{x(1):g} {y(1):g}" class="grid"/>']
    for tick in (0.0, 0.5, 1.0):
        parts += [
            f'<path d="M{left} {y(tick):g}H{right}" class="grid"/>',
            text(left - 6, y(tick) + 4, f"{tick:g}", "dim", "end"),
            text(x(tick), bottom + foot + 14, f"{tick:g}", "dim", "middle"),
        ]
    there = bins[(bins[:, 0] > 0) & np.isfinite(bins[:, 1])]
    most = np.log1p(bins[:, 0].max())
    width = (right - left) / len(bins)
    for i, voxels in enumerate(bins[:, 0]):
        high = foot * np.log1p(voxels) / most if most else 0.0
        parts.append(
            f'<rect x="{left + i * width + 0.5:.1f}" y="{bottom + foot - high:.1f}" '
            f'width="{width - 1:.1f}" height="{high:.1f}" fill="{COLOURS[region]}" '
            'fill-opacity=".4"/>'
        )
    points = [(x(p / n), y(truth / n)) for n, p, truth in there]
    line = "L".join(f"{across:.1f} {up:.1f}" for across, up in points)
    if points:
        parts.append(f'<path d="M{line}" stroke="{COLOURS[region]}" stroke-width="2" fill="none"/>')
    for (across, up), (n, p, truth) in zip(points, there, strict=True):
        parts.append(
            titled(
                f"mean probability {p / n:.3f}: {100 * truth / n:.1f} % of {n:.0f} voxels",
                f'<circle cx="{across:.1f}" cy="{up:.1f}" r="4" fill="{COLOURS[region]}"/>',
            )
        )
    label = f"{region}: share of the truth against probability"
    return picture(right + 12, bottom + foot + 20, parts, label)


def gates(lines: Sequence[tuple[str, np.ndarray]], heads: Sequence[str], region: str) -> str:
    """Draw lines of squares, a group of experts under each head; an array is head × expert."""
    side, top, left, gap = 12, 22, 126, 10
    experts = lines[0][1].shape[1]
    limit = np.nanmax([1e-6, *(np.nanmax(values, initial=0) for _, values in lines)])
    wide = side * experts + gap
    parts = [text(left + wide * h, top - 8, head, "dim") for h, head in enumerate(heads)]
    for row, (title, values) in enumerate(lines):
        y = top + row * (side + 2) + (6 if row else 0)
        short = title if len(title) < 19 else f"…{title[-17:]}"
        parts.append(titled(title, text(left - 8, y + 10, short, "" if row else "head", "end")))
        for h, head in enumerate(heads):
            told = ", ".join(f"{v:.2f}" if np.isfinite(v) else "–" for v in values[h])
            squares = (
                f'<rect x="{left + wide * h + side * e}" y="{y}" width="{side - 1}" '
                f'height="{side - 1}" fill="{COLOURS[region]}" '
                f'fill-opacity="{max(0.04, v / limit):.2f}"/>'
                for e, v in enumerate(values[h])
                if np.isfinite(v)
            )
            parts.append(titled(f"{title}, {head}: {told}", *squares))
    height = top + len(lines) * (side + 2) + 8
    # As wide as with a group a modality, so that squares have one size.
    width = left + wide * len(MODALITIES)
    return picture(width, height, parts, f"{region}: gates by patient and expert")


def marks(subset: str, x: float, y: float) -> str:
    """Draw a subset as four circles, filled where the modality is there."""
    circles = (
        f'<circle cx="{x + 13 * i:g}" cy="{y:g}" r="4" class="{"on" if here else "off"}"/>'
        for i, here in enumerate(parse_subset(subset))
    )
    return titled(shown(subset), *circles)


def signed(value: float) -> str:
    """Write a difference with one decimal and a true minus."""
    return f"{value:+.1f}".replace("-", "−")


def shown(subset: str) -> str:
    """Write a subset for people: `T1c + FLAIR`."""
    present = parse_subset(subset)
    return " + ".join(SHOWN_AS[m] for m, here in zip(MODALITIES, present, strict=True) if here)


def _span(scale: Scale, low: float, high: float, y: float, style: str) -> str:
    """Draw an interval, or nothing where there is none."""
    if not np.isfinite(low):
        return ""
    return f'<path d="M{scale(low):.1f} {y:g}H{scale(high):.1f}" {style}/>'


def _strip(scale: Scale, values: np.ndarray, middle: float, row: float, colour: str) -> str:
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
    scale: Scale, line: tuple[str, str | None, float, float, float, bool], y: float, colour: str
) -> list[str]:
    title, subset, mean, low, high, sure = line
    head = marks(subset, 38, y) if subset else text(6, y + 4, title, "dim")
    if not np.isfinite(mean):
        return [head]
    fill = colour if sure else "none"
    return [
        head,
        _span(scale, low, high, y, f'stroke="{colour}" stroke-width="2"'),
        f'<circle cx="{scale(mean):.1f}" cy="{y:g}" r="4.5" fill="{fill}" stroke="{colour}" '
        'stroke-width="2"/>',
        text(scale.end + 54, y + 4, signed(mean) + ("*" if sure else ""), "num", "end"),
    ]
