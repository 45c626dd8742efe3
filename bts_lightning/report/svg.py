"""SVG text drawn by hand: it needs no library, scales, prints and follows the page's theme."""

import math
from collections.abc import Sequence
from html import escape

# A picture that stands alone carries the page's colours with it.
STYLE = """<style>
text{font:11px system-ui,sans-serif;fill:#1c2430}.head{font-weight:600}.dim{fill:#5b6675}
.num{font-variant-numeric:tabular-nums}.grid{stroke:#d5dae1}.line{stroke:#1c2430;fill:none}
.off{fill:none;stroke:#8b95a3}.on{fill:#1c2430}
@media (prefers-color-scheme:dark){text{fill:#e6eaf0}.dim{fill:#9aa5b4}.grid{stroke:#333c48}
.line{stroke:#e6eaf0}.off{stroke:#6b7685}.on{fill:#e6eaf0}}
</style>"""


def picture(width: float, height: float, parts: Sequence[str], label: str, style: str = "") -> str:
    """Wrap drawn parts as one picture that screen readers name."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'role="img" aria-label="{escape(label)}">{style}{"".join(parts)}</svg>'
    )


def text(x: float, y: float, content: str, style: str = "", anchor: str = "start") -> str:
    """Write a line; `style` names classes of the page and of STYLE."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}">'
        f"{escape(content)}</text>"
    )


def titled(title: str, *parts: str) -> str:
    """Group parts that tell their title when pointed at."""
    return f"<g><title>{escape(title)}</title>{''.join(parts)}</g>"


class Scale:
    """Map values, perhaps their logarithms, to positions."""

    def __init__(
        self, low: float, high: float, start: float, end: float, is_logarithmic: bool = False
    ) -> None:
        self.low, self.high, self.start, self.end = low, high, start, end
        self.is_logarithmic = is_logarithmic
        self._per_unit = (end - start) / ((self._at(high) - self._at(low)) or 1.0)

    @classmethod
    def around(
        cls, values: Sequence[float], start: float, end: float, is_logarithmic: bool = False
    ) -> "Scale":
        """Span some values, and a little where there is only one."""
        low, high = min(values), max(values)
        if low == high:
            around = abs(low) / 2 or 0.5
            low, high = low - around, high + around
        return cls(low, high, start, end, is_logarithmic and low > 0)

    def __call__(self, value: float) -> float:
        return float(self.start + (self._at(value) - self._at(self.low)) * self._per_unit)

    def ticks(self) -> list[float]:
        """Choose a few round values within the range."""
        if not self.is_logarithmic:
            return round_values(self.low, self.high, 4)
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for digits in ((1,), (1, 3), (1, 2, 5)):
            found = [d * 10.0**p for p in powers for d in digits]
            found = [tick for tick in found if self.low <= tick <= self.high]
            if len(found) >= 3:
                return found
        return [self.low, self.high]

    def axis(self, top: float, bottom: float, ticks: Sequence[float]) -> list[str]:
        """Draw thin upright lines at values with their numbers above."""
        return [
            f'<path d="M{self(tick):.1f} {top:g}V{bottom:g}" class="grid"/>'
            + text(self(tick), top - 4, f"{tick:g}".replace("-", "−"), "dim", "middle")
            for tick in ticks
        ]

    def _at(self, value: float) -> float:
        return math.log(value) if self.is_logarithmic else value


def round_values(low: float, high: float, about: int) -> list[float]:
    """Choose about so many round values that lie within the range, 0 among them if it does."""
    rough = max(high - low, 1e-9) / about
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(step * i, 12) for i in range(first, last + 1)]
