"""A patient in the browser, or in a notebook, with a switch for each modality."""

from pathlib import Path
from typing import Any


def show(run: str | Path, case: str | None = None, *, device: str | None = None) -> Any:
    """Give a widget for a notebook: a case of the run's test part, and four switches.

    Args:
        run: a run folder.
        case: its name; the first one of the test part by default.
        device: `cpu` or `cuda`; a GPU if there is one by default.

    Example:
        >>> show("runs/demo/20260131-120000")  # doctest: +SKIP
    """
    # Torch and the widgets take seconds, which no help text needs.
    from bts_lightning.viewer.widget import patient_widget

    return patient_widget(Path(run), case, device)
