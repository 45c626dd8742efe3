"""Open runs and cases for a viewer; what is wrong with them is said before a page is."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bts_lightning.data.splits import Part
from bts_lightning.errors import UserError
from bts_lightning.modalities import Modality, Subset
from bts_lightning.runs.opening import open_runs

if TYPE_CHECKING:
    from bts_lightning.viewer.session import Session


def open_session(
    folders: Sequence[Path],
    case: str | None = None,
    *,
    images: Mapping[Modality, Path] | None = None,
    words: Sequence[str] = (),
    allow: Sequence[str] = (),
    part: Part = "test",
    checkpoint: Path | None = None,
    device: str | None = None,
    subset: Subset | None = None,
    at: tuple[int, int, int] | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> "Session":
    """Load the networks of runs and find the cases; nothing is segmented before it is opened.

    Args:
        folders: of the runs, shown side by side.
        case: shown first; the first one of the part by default.
        images: one file a modality of a single patient, in place of the run's cases.
        words: overrides, as `evaluation.overlap=0.25` or `data.root=OTHER`.
        allow: packages that `_target_` may name beyond ours.
        part: of the first run's split.
        checkpoint: another one than the best, of a single run.
        device: `cpu`, `cuda` or `cuda:1`; a GPU if there is one by default.
        subset: shown first.
        at: the voxel that is shown first.
        tell: takes warnings.
    """
    opened = open_runs(folders, words, allow, checkpoint)
    # torch is imported once nothing is wrong with what was typed.
    from bts_lightning.viewer.maps import MapMaker
    from bts_lightning.viewer.patients import patient_of, patients_of, place_of, seen_before
    from bts_lightning.viewer.session import Session, Start

    makers = [MapMaker(one, device) for one in opened]
    for maker in makers[1:]:
        if maker.scheme != makers[0].scheme:
            raise UserError(
                f"{makers[0].run} and {maker.run} tell other tissues apart, so no page can show "
                "both; give runs of one data.scheme"
            )
    if images:
        patients = [patient_of(makers, images)]
    else:
        patients = patients_of(makers, part)
        for text in seen_before(makers, part):
            tell(text)
    number = place_of(case, patients)
    has = patients[number].views[0].available
    if subset and any(asked and not here for asked, here in zip(subset, has, strict=True)):
        raise UserError(f"--subset: {patients[number].name} lacks a modality of it")
    return Session(makers, patients, Start(number, subset, at))
