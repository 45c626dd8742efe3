"""The files of an evaluation folder that are computed from its table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bts_lightning.files import content, write_whole
from bts_lightning.report.beside import read_all
from bts_lightning.report.facts import read_protocol
from bts_lightning.report.page import page
from bts_lightning.report.see import PICTURE
from bts_lightning.report.slices import CaseSlices, load_slices
from bts_lightning.report.statistics import mean
from bts_lightning.report.summary import latex, markdown, summarise
from bts_lightning.report.table import EvaluationTable


def write_report(
    folder: Path,
    table: EvaluationTable | None = None,
    protocol: Mapping[str, Any] | None = None,
    slices: Sequence[CaseSlices] | None = None,
    *,
    published: str = "",
    corrupt: bool = False,
) -> Path:
    """Write summary.md, summary.tex and report.html; what is not given is read from the folder.

    `published` names the data set whose published numbers stand beside ours, `corrupt` asks for
    those that are known to be wrong too.

    >>> write_report(Path("runs/a2fseg/newest/evaluation/test"))
    PosixPath('runs/a2fseg/newest/evaluation/test/report.html')
    """
    table = EvaluationTable.read(folder) if table is None else table
    facts = read_protocol(folder) if protocol is None else protocol
    kept = load_slices(folder, choose_cases(table)) if slices is None else slices
    summary = summarise(table, facts)
    write_whole(folder / "summary.md", markdown(summary))
    write_whole(folder / "summary.tex", latex(summary))
    picture = content(folder / PICTURE) if (folder / PICTURE).is_file() else None
    beside = read_all(folder, facts)
    made = page(summary, kept, beside, dataset=published, corrupt=corrupt, view=picture)
    return write_whole(folder / "report.html", made)


def choose_cases(table: EvaluationTable, count: int = 12) -> list[str]:
    """Choose cases worth looking at: the worst third, then an even walk up to the best."""
    dice = table.grid("dice").reshape(len(table.cases), -1)
    # A case without any value comes first.
    ranked = [table.cases[i] for i in np.argsort(np.nan_to_num(mean(dice, axis=1)), kind="stable")]
    if len(ranked) <= count:
        return ranked
    worst = count // 3
    others = np.linspace(worst, len(ranked) - 1, count - worst).round().astype(int)
    return ranked[:worst] + [ranked[i] for i in others]
