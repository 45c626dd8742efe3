"""Curves as SVG text, over the validations of a sweep or the epochs of a study."""

from collections.abc import Sequence

from bts_lightning.report.svg import Scale, picture, text, titled

BEST, OTHER, PRUNED = "#e69f00", "#3b8ed0", "#8b95a3"
LEFT, RIGHT, TOP, BOTTOM = 52, 330, 26, 186
WIDTH, HEIGHT = 344, 222
COLOURS = {"best": BEST, "other": OTHER, "pruned": PRUNED}

Curve = tuple[str, Sequence[float], str]  # title, values, best | other | pruned


def draw_curves(lines: Sequence[Curve], metric: str, over: str = "validation") -> str:
    """Draw the metric of every trial over its validations, the best on top."""
    values = [v for _, curve, _ in lines for v in curve]
    longest = max(len(curve) for _, curve, _ in lines)
    across, up = Scale(1, max(longest, 2), LEFT, RIGHT), Scale.around(values, BOTTOM, TOP)
    labels = [(across(n), str(n)) for n in _whole(longest)]
    parts = frame(up, metric, over, labels)
    for title, curve, kind in sorted(lines, key=lambda line: line[2] == "best"):
        at = [f"{across(i):.1f} {up(v):.1f}" for i, v in enumerate(curve, 1)]
        width = 2.5 if kind == "best" else 1.2
        style = f'stroke="{COLOURS[kind]}" stroke-width="{width}" stroke-linecap="round"'
        path = f'<path d="M{"L".join(at)}h0" fill="none" {style}/>'
        parts.append(titled(title, path))
    return picture(WIDTH, HEIGHT, parts, f"{metric} over each {over}")


def frame(up: Scale, metric: str, name: str, labels: Sequence[tuple[float, str]]) -> list[str]:
    """Draw horizontal lines at round values, and say what the axes are."""
    parts = [text(x, BOTTOM + 14, label, "dim num", "middle") for x, label in labels]
    for tick in up.ticks():
        y = up(tick)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{RIGHT}" class="grid"/>')
        parts.append(text(LEFT - 6, y + 4, f"{tick:g}", "dim num", "end"))
    parts.append(text(4, 12, metric, "head"))
    parts.append(text((LEFT + RIGHT) / 2, HEIGHT - 6, name, "head", "middle"))
    return parts


def _whole(count: int) -> list[int]:
    """Choose whole numbers from 1, about five."""
    step = max(1, round(count / 5))
    return [1, *(n for n in range(step, count + 1, step) if n > 1)]
