"""Lead from a report to `bts view`: the case that loses most without T1c, and its picture."""

import shlex
from base64 import b64encode
from html import escape

import numpy as np

from bts_lightning.modalities import COMPLETE, MODALITIES, subset_name
from bts_lightning.report.summary import Summary
from bts_lightning.report.table import EvaluationTable

# What `bts view RUN --report` leaves in the folder of an evaluation.
PICTURE = "view.png"
WITHOUT_T1C = subset_name([modality != "t1c" for modality in MODALITIES])


def largest_loss(table: EvaluationTable) -> tuple[str, float] | None:
    """Give the case whose mean Dice falls most without T1c, and by how many points."""
    complete = subset_name(COMPLETE)
    if not {complete, WITHOUT_T1C} <= set(table.subsets):
        return None
    dice = 100 * table.grid("dice").mean(axis=2)
    loss = dice[:, table.subsets.index(complete)] - dice[:, table.subsets.index(WITHOUT_T1C)]
    if not np.isfinite(loss).any():
        return None
    worst = int(np.nanargmax(loss))
    return table.cases[worst], float(loss[worst])


def section(summary: Summary, picture: bytes | None = None) -> str:
    """Name the command that shows this case, with its picture if there is one."""
    found, run = largest_loss(summary.table), summary.protocol.get("run")
    # An ensemble has no folder of weights that could be looked at.
    if found is None or not isinstance(run, str) or "members" in summary.protocol:
        return ""
    case, loss = found
    words = ["bts", "view", run, case, "--subset", WITHOUT_T1C]
    shown = ""
    if picture:
        code = b64encode(picture).decode()
        text = f"{case} without T1c, in three planes and 3-D"
        shown = f'<img class="view" alt="{escape(text)}" src="data:image/png;base64,{code}">'
    return (
        f'<p class="note">Without T1c {escape(case)} loses most: {loss:.1f} points of mean Dice. '
        f"Switch modalities yourself: <code>{escape(shlex.join(words))}</code></p>{shown}"
    )
