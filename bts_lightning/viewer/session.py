"""What a viewer knows: runs and cases, and one thread that makes label maps in the background."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from bts_lightning.data.cache.geometry import Geometry
from bts_lightning.errors import UserError
from bts_lightning.modalities import (
    MODALITIES,
    REGION_WORDS,
    SHOWN_AS,
    SUBSETS,
    TISSUES,
    Scheme,
    Subset,
    parse_subset,
    subset_name,
    subsets_within,
)
from bts_lightning.report.plots import COLOURS
from bts_lightning.report.slices import to_display
from bts_lightning.viewer import pictures
from bts_lightning.viewer.maps import MapMaker, Stopped
from bts_lightning.viewer.patients import Patient

# Pictures of a full head take 18 MB each; a page asks for one or two of a case.
KEPT_PICTURES = 4
# The maps of a subset are known by its place in the order of all fifteen, counted from 1.
CODES = {subset: code for code, subset in enumerate(SUBSETS, 1)}


@dataclass(frozen=True)
class Start:
    """What a page shows first."""

    case: int = 0
    subset: Subset | None = None
    at: tuple[int, int, int] | None = None


@dataclass
class State:
    """How far the label maps of a case are, for one run.

    Attributes:
        stage: `waiting`, `working`, `done` or `failed`.
        rows: what was measured of each subset whose files are there, by its code.
    """

    stage: str = "waiting"
    progress: float = 0.0
    error: str = ""
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    weights: list[dict[str, Any]] = field(default_factory=list)
    shapley: dict[str, list[float]] | None = None


class Session:
    """Some runs side by side, their cases, and what is known of them so far.

    A case that is opened goes first; one that is being made waits then. What is on disk from an
    earlier session is read and not made again.

    Args:
        makers: one a run.
        patients: at least one.
        start: what the page shows first.
    """

    def __init__(
        self, makers: Sequence[MapMaker], patients: Sequence[Patient], start: Start | None = None
    ) -> None:
        self.makers, self.patients, self.start = makers, patients, start or Start()
        self.names = _told_apart(makers)
        self._states: dict[tuple[int, int], State] = {}
        # The newest wish is the last one.
        self._wanted: list[tuple[int, int]] = []
        self._changed = threading.Condition()
        self._closed = False
        self._picture = lru_cache(maxsize=KEPT_PICTURES)(self._make_picture)
        self._thread = threading.Thread(target=self._work, daemon=True, name="label maps")
        self._thread.start()

    def close(self) -> None:
        """Stop making label maps, and wait for the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout=60)

    def facts(self) -> dict[str, Any]:
        """Say what does not change: words, colours, runs and the list of cases."""
        scheme = self._scheme
        return {
            "modalities": [{"key": m, "shown": SHOWN_AS[m]} for m in MODALITIES],
            "subsets": {code: subset_name(subset) for subset, code in CODES.items()},
            "regions": {
                r: {"colour": COLOURS[r], "words": REGION_WORDS[r]} for r in scheme.regions
            },
            "runs": self.names,
            "cases": [{"name": p.name, "dice": p.dice} for p in self.patients],
            "start": {
                "case": self.start.case,
                "subset": CODES[self.start.subset] if self.start.subset else 0,
                "at": self.start.at,
            },
        }

    def open(self, case: int) -> dict[str, Any]:
        """Want the label maps of a case before all others, and tell its grid and its labels."""
        with self._changed:
            wanted = [(case, run) for run in reversed(range(len(self.makers)))]
            for key in wanted:
                self._states.setdefault(key, State())
            waiting = [key for key in wanted if self._states[key].stage in ("waiting", "working")]
            self._wanted = [key for key in self._wanted if key not in waiting] + waiting
            self._changed.notify_all()
        view = self.patients[case].views[0]
        geometry, scheme = view.geometry, self._scheme
        axes, flipped = to_display(np.array(geometry.affine))
        values = geometry.file_values
        return {
            "name": self.patients[case].name,
            "available": CODES[view.available],
            "subsets": [CODES[subset] for subset in subsets_within(view.available)],
            "labelled": view.label is not None,
            "shape": geometry.shape,
            "spacing": geometry.spacing,
            # NiiVue counts voxels from the patient's left, back and feet; files may not.
            "affine": geometry.affine,
            "inverse": np.linalg.inv(np.array(geometry.affine)).tolist(),
            "box": geometry.box,
            "axes": axes,
            "flipped": flipped,
            "regions": {
                region: [values[c] for c in classes if c in values]
                for region, classes in scheme.regions.items()
            },
            "labels": _labels(scheme, geometry),
        }

    def state(self, case: int) -> list[dict[str, Any]]:
        """Tell, for each run, how far a case is."""
        with self._changed:
            each = [self._states.get((case, run), State()) for run in range(len(self.makers))]
            return [asdict(state) for state in each]

    def wait(self, case: int, *, seconds: float = 3600) -> None:
        """Wait until a case that was opened is done for all runs."""
        keys = [(case, run) for run in range(len(self.makers))]
        with self._changed:
            self._changed.wait_for(
                lambda: all(self._states[key].stage in ("done", "failed") for key in keys), seconds
            )
            for key in keys:
                if self._states[key].stage != "done":
                    raise UserError(self._states[key].error or "the label maps were not made")

    def picture(self, case: int, modality: int) -> bytes | None:
        """Give the NIfTI of what the network was shown; None if it was never acquired."""
        if not self.patients[case].views[0].available[modality]:
            return None
        return self._picture(case, modality)

    def truth(self, case: int) -> bytes | None:
        """Give the NIfTI of the expert's labels, compressed; None without."""
        return pictures.truth(self.patients[case].views[0])

    def label_map(self, case: int, run: int, subset: Subset) -> Path | None:
        """Give the file of a label map; None while it is not there."""
        kept = self.makers[run].kept(self.patients[case].views[run])
        return kept.label_map(subset) if self._has(case, run, subset) else None

    def entropy(self, case: int, run: int, subset: Subset) -> Path | None:
        """Give the file of an entropy; None while it is not there."""
        kept = self.makers[run].kept(self.patients[case].views[run])
        return kept.entropy(subset) if self._has(case, run, subset) else None

    def disagreement(self, case: int, run: int) -> Path | None:
        """Give the file that says where subsets differ; None while it is not there."""
        with self._changed:
            state = self._states.get((case, run))
        is_done = state is not None and state.stage == "done"
        kept = self.makers[run].kept(self.patients[case].views[run])
        return kept.disagreement if is_done else None

    @property
    def _scheme(self) -> Scheme:
        return self.makers[0].scheme

    def _has(self, case: int, run: int, subset: Subset) -> bool:
        with self._changed:
            state = self._states.get((case, run))
            return state is not None and CODES[subset] in state.rows

    def _make_picture(self, case: int, modality: int) -> bytes:
        return pictures.picture(self.patients[case].views[0], modality)

    def _work(self) -> None:
        """Make what is wanted, the newest wish first."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or bool(self._wanted))
                if self._closed:
                    return
                key = self._wanted[-1]
                state = self._states[key]
                state.stage = "working"
            try:
                self._do(key, state)
            except Stopped:
                with self._changed:
                    state.stage, state.progress = "waiting", 0.0
                continue
            except Exception as error:
                # The page says it; the others cases can still be looked at.
                with self._changed:
                    state.stage, state.error = "failed", _sentence(error)
            with self._changed:
                self._wanted = [one for one in self._wanted if one != key]
                self._changed.notify_all()

    def _do(self, key: tuple[int, int], state: State) -> None:
        case, run = key
        maker, view = self.makers[run], self.patients[case].views[run]
        kept = maker.kept(view)
        subsets = subsets_within(view.available)
        told = kept.summary()
        if told is None or not all(kept.label_map(subset).is_file() for subset in subsets):
            maker.make(view, self._taker(state), self._ticker(key, state))
            told = kept.summary() or {}
        with self._changed:
            rows = told.get("rows", {})
            state.rows = {CODES[parse_subset(name)]: row for name, row in rows.items()}
            state.weights, state.shapley = told.get("weights", []), told.get("shapley")
            state.stage, state.progress = "done", 1.0

    def _taker(self, state: State) -> Callable[[Mapping[Subset, dict[str, Any]]], None]:
        def take(rows: Mapping[Subset, dict[str, Any]]) -> None:
            with self._changed:
                state.rows |= {CODES[subset]: row for subset, row in rows.items()}

        return take

    def _ticker(self, key: tuple[int, int], state: State) -> Callable[[float], None]:
        def tick(share: float) -> None:
            with self._changed:
                if self._closed or self._wanted[-1] != key:
                    raise Stopped
                state.progress = round(share, 4)

        return tick


def _told_apart(makers: Sequence[MapMaker]) -> list[str]:
    """Name runs by their experiments, and by their folders where those are the same."""
    names = [maker.experiment for maker in makers]
    full = [f"{maker.experiment}/{maker.run.resolve().name}" for maker in makers]
    return [long if names.count(name) > 1 else name for name, long in zip(names, full, strict=True)]


def _labels(scheme: Scheme, geometry: Geometry) -> list[dict[str, Any]]:
    """Say what each value of a file means, and how it is painted."""
    painted = {stored: COLOURS[region] for region, stored in scheme.paint.items()}
    tissue = {stored: TISSUES[of] for of, stored in reversed(list(scheme.stored.items()))}
    return [
        {"value": value, "name": tissue[stored], "colour": painted.get(stored, "#7a7a7a")}
        for stored, value in sorted(geometry.file_values.items())
        if stored
    ]


def _sentence(error: Exception) -> str:
    text = str(error).partition("\n")[0]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
