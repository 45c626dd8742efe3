"""The report of a preprocessing: a table of all patients, and their contact sheets."""

import io
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

from bts_lightning.files import write_whole
from bts_lightning.modalities import MODALITIES, SHOWN_AS
from bts_lightning.preprocess.folder import Outcome
from bts_lightning.report.document import columns, grid, page

NAME = "preprocess.html"
# Of pictures in one page; the others lie in the folders of their cases.
BUDGET = 20_000_000
NOTICE = "Research software, not a medical device: look at every sheet before you use an image."
_STATES = {"done": "done now", "there": "was there", "failed": "FAILED"}


def write_page(outcomes: Sequence[Outcome], out: Path) -> Path:
    """Write the page, those who failed first."""
    ordered = sorted(outcomes, key=lambda one: (one.state != "failed", one.case))
    heads = ["case", "state", "brain, ml", "mask", *(SHOWN_AS[m] for m in MODALITIES), "why not"]
    table = grid(columns(heads), map(_row, ordered), "Mutual information before → after")
    figures, left = [], BUDGET
    for one in ordered:
        text = _picture(one)
        left -= len(text)
        if left < 0:
            break
        figures.append(text)
    failed = sum(one.state == "failed" for one in ordered)
    lead = f"Ready: {len(ordered) - failed} of {len(ordered)} patients. {NOTICE}"
    main = f'<section><div class="scroll">{table}</div></section>{"".join(figures)}'
    return write_whole(out / NAME, page("From the scanner", main, lead, with_pictures=True))


def _row(one: Outcome) -> str:
    information = one.facts.get("information", {})
    cells = [_STATES[one.state], one.facts.get("brain_ml", ""), one.facts.get("mask", "")]
    for modality in MODALITIES:
        found = information.get(modality)
        cells.append(f"{found['before']:.2f} → {found['after']:.2f}" if found else "")
    shown = "".join(f"<td>{escape(str(cell))}</td>" for cell in cells)
    why = f'<td class="prose">{escape(one.error)}</td>'
    return f'<tr><th scope="row">{escape(one.case)}</th>{shown}{why}</tr>'


def _picture(one: Outcome) -> str:
    if one.picture is None or not one.picture.is_file():
        return ""
    packed = io.BytesIO()
    with Image.open(one.picture) as sheet:
        sheet.save(packed, "WEBP", quality=80)
    data = b64encode(packed.getvalue()).decode()
    return (
        f'<section><h2>{escape(one.case)}</h2><div class="scroll"><img class="sheet" '
        f'alt="contact sheet" src="data:image/webp;base64,{data}"></div></section>'
    )
