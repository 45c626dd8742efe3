"""Compare runs that were evaluated on the same cases with the same protocol."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bts_lightning.report.evaluations import open_evaluations
from bts_lightning.report.terminal import compare_evaluations


def compare(
    runs: Sequence[Path],
    out: Path | None = None,
    console: Console | None = None,
    metrics: Sequence[str] | None = None,
) -> int:
    """Print every run against the first, and write Markdown, HTML and figures if `out` is given."""
    compare_evaluations(open_evaluations(runs), out, console, metrics)
    return 0
