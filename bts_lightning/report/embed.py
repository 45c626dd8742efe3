"""Slices as text inside a page: pictures as WebP, label maps run-length coded."""

from base64 import b64encode
from collections.abc import Iterable
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from bts_lightning.modalities import MODALITIES
from bts_lightning.report.slices import CaseSlices

# Leaves room for the tables and plots of some hundred cases in a page of 10 MB.
BUDGET = 7_500_000
# For looking, not for measuring: a third of lossless PNG and no difference to the eye.
QUALITY = 85


def embed(slices: Iterable[CaseSlices], budget: int = BUDGET) -> dict[str, dict[str, Any]]:
    """Give what the page's viewer reads, by case, for as many cases as fit the budget."""
    embedded: dict[str, dict[str, Any]] = {}
    for case in slices:
        entry = _entry(case)
        budget -= sum(len(text) for text in [*entry["images"], entry["truth"], entry["labels"]])
        if budget < 0:
            break
        embedded[case.case] = entry
    return embedded


def run_lengths(labels: np.ndarray) -> bytes:
    """Code a label map (values 0..7) as runs: length × 8 + label, 7 bits a byte, lowest first."""
    flat = labels.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=flat[0] + 1))
    lengths = np.diff(starts, append=len(flat))
    coded = bytearray()
    for token in (lengths.astype(np.int64) * 8 + flat[starts]).tolist():
        while token > 127:
            coded.append(token & 127 | 128)
            token >>= 7
        coded.append(token)
    return bytes(coded)


def _entry(case: CaseSlices) -> dict[str, Any]:
    count, height, width = case.images.shape[1:]
    return {
        "size": [count, height, width],
        "spacing": list(case.spacing),
        "positions": case.positions,
        "subsets": case.subsets,
        "images": [_picture(case.images[i]) for i in range(len(MODALITIES))],
        "truth": "" if case.truth is None else _text(run_lengths(case.truth)),
        "labels": _text(run_lengths(case.predicted)),
    }


def _picture(slices: np.ndarray) -> str:
    """Stack slices downwards into one picture; an absent modality gives no picture."""
    if not slices.any():
        return ""
    buffer = BytesIO()
    tall = Image.fromarray(slices.reshape(-1, slices.shape[-1]))
    tall.save(buffer, "WEBP", quality=QUALITY, method=4)
    return f"data:image/webp;base64,{_text(buffer.getvalue())}"


def _text(code: bytes) -> str:
    return b64encode(code).decode()
