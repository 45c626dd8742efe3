"""The two parts of the bound that MedMAP argues with, over the epochs of a study's trainings."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bts_lightning.loggers import read_metrics
from bts_lightning.report.curves import draw_curves
from bts_lightning.report.document import Sheet

PARTS = {
    "reconstruction": "-log p(labels)",
    "kl": "KL to the anchor",
    "bound": "bound (ELBO)",
}
_NOTE = (
    "In nats a voxel, over the patches and subsets of training. Our reading, for the paper was not "
    "at hand: the bound is minus the sum of the other two; -log p is that of the segmentation, and "
    "KL the divergence of N(f, 1) around the features f of a modality from the normal distribution "
    "of the anchor, averaged over modalities. Only networks inside MedMAP have one, those that it "
    "only watches too (task.net.watch_only=true)."
)

Curves = Mapping[str, Sequence[float]]


def read_curves(run: Path) -> dict[str, list[float]]:
    """Read the parts of a run by epoch; nothing where it has none."""
    file = run / "logs" / "metrics.csv"
    found = read_metrics(file) if file.is_file() else {}
    curves = {part: found.get(f"train/elbo/{part}", []) for part in PARTS}
    return {part: [value for _, value in curve] for part, curve in curves.items() if curve}


def bound_sheets(
    groups: Sequence[Sequence[str]], trainings: Mapping[str, Sequence[Curves]]
) -> list[Sheet]:
    """Lay out the last epoch as a table, and for each group of experiments a figure a part."""
    measured = {name: [c for c in all_ if len(c) == len(PARTS)] for name, all_ in trainings.items()}
    measured = {name: curves for name, curves in measured.items() if curves}
    if not measured:
        return []
    rows = [
        [name, str(len(curves)), *(_last([c[part] for c in curves]) for part in PARTS)]
        for name, curves in measured.items()
    ]
    heads = ["experiment", "trainings", *PARTS.values()]
    sheets = [Sheet("Bound (ELBO) in the last epoch of training", heads, rows, [_NOTE])]
    for names in groups:
        drawn = [name for name in names if name in measured]
        if drawn:
            figures = [_figure(names[0], drawn, measured, part) for part in PARTS]
            told = f"Blue is {names[0]}, orange what stands beside it; a line is a training."
            title = f"Bound over epochs: {', '.join(drawn)}"
            sheets.append(Sheet(title, notes=[told], figures=figures))
    return sheets


def _last(curves: Sequence[Sequence[float]]) -> str:
    ends = [curve[-1] for curve in curves]
    spread = f" ± {np.std(ends, ddof=1):.4f}" if len(ends) > 1 else ""
    return f"{np.mean(ends):.4f}{spread}".replace("-", "−")


def _figure(
    reference: str, drawn: Sequence[str], measured: Mapping[str, Sequence[Curves]], part: str
) -> str:
    lines = [
        (name, curves[part], "other" if name == reference else "best")
        for name in drawn
        for curves in measured[name]
    ]
    return draw_curves(lines, PARTS[part], "epoch")
