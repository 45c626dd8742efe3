"""What `bts predict` does: segment cases with a trained network, or with several together."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.progress import track

from bts_lightning.data.cache.prediction import write_probabilities
from bts_lightning.data.cache.prepare import case_of, load_cases, write_prediction
from bts_lightning.data.cache.reading import BrokenCaseError
from bts_lightning.data.cache.ready import ReadyCase
from bts_lightning.data.layouts.case import Case
from bts_lightning.data.layouts.find import find_cases
from bts_lightning.errors import DataError, UserError
from bts_lightning.files import overwritten
from bts_lightning.modalities import Modality, subset_name
from bts_lightning.report.screen import Screen
from bts_lightning.runs.devices import chosen_device
from bts_lightning.runs.ensemble import load_ensemble
from bts_lightning.runs.opening import OpenRun, recipe_of
from bts_lightning.runs.seen import warnings

console = Screen()


class Segmenter:
    """The networks of some runs, which segment together, and how their images were prepared."""

    def __init__(
        self, opened: Sequence[OpenRun], device: str | None, *, with_probabilities: bool
    ) -> None:
        self.checkpoints = [one.checkpoint for one in opened]
        self.ensemble = load_ensemble(opened).to(chosen_device(device))
        pairs = zip(opened, self.ensemble.data, strict=True)
        self.recipes = [recipe_of(one.run, data) for one, data in pairs]
        self.with_probabilities = with_probabilities

    def patient(self, images: Mapping[Modality, Path], out: Path) -> Path:
        """Segment one patient from one file a modality."""
        self.refuse_to_overwrite([out], images.values())
        try:
            scheme = self.ensemble.loss.scheme_name
            cases = load_cases(case_of(images, scheme=scheme), self.recipes)
        except BrokenCaseError as error:
            # The files of one patient have no other name for their case.
            raise DataError("; ".join(f"{f.file}: {f.reason}" for f in error.faults)) from error
        self.write(cases, out)
        console.print(f"{out}  from {subset_name(cases[0].available)}")
        return out

    def folder(self, folder: Path, out: Path) -> list[Path]:
        """Segment a data set; what is broken in it is named and left out."""
        found = find_cases(folder)
        faults = list(found.faults)
        # Labels are not read, but whoever has them wants to keep them.
        given = [file for case in found.cases for file in case.files]
        given += [file for fault in faults for file in (fault.file, *fault.others)]
        self.refuse_to_overwrite((_place(case, out) for case in found.cases), given)
        names = [(case.name, case.patient) for case in found.cases]
        for text in (text for one in self.ensemble.runs for text in warnings(one.run, names)):
            console.print(text, style="yellow")
        written = []
        for listed in track(
            found.cases, "segmenting", console=console, disable=not console.is_terminal
        ):
            try:
                # Its label, if there is one, has no part in this: not even in where the crop lies.
                cases = load_cases(replace(listed, label=None), self.recipes)
            except BrokenCaseError as error:
                faults += error.faults
                continue
            file = _place(listed, out)
            self.write(cases, file)
            written.append(file)
        for fault in faults:
            console.print(f"left out: {fault}", style="yellow")
        if not written:
            raise UserError(f"{folder} has no case that can be segmented")
        console.print(f"{len(written)} label map{'s' if len(written) > 1 else ''} in {out}")
        return written

    def write(self, cases: Sequence[ReadyCase], out: Path) -> torch.Tensor:
        """Segment a case, prepared for each network, with all that it has; give probabilities."""
        case = cases[0]
        ((labels, averaged),) = self.ensemble.each_subset(cases, [case.available])
        if self.with_probabilities:
            write_probabilities(case, averaged[0].cpu().numpy(), _beside(out))
        write_prediction(case, labels, out)
        return averaged

    def refuse_to_overwrite(self, outs: Iterable[Path], given: Iterable[Path]) -> None:
        """Compare all that will be written with all that is given, before anything is written."""
        written = list(outs)
        if self.with_probabilities:
            written += [_beside(out) for out in written]
        if both := overwritten(written, [*given, *self.checkpoints]):
            raise UserError(
                f"--out: the result {both[0]} would overwrite {both[1]}, which is given; choose "
                "another place"
            )


def _place(case: Case, out: Path) -> Path:
    return out / f"{case.name}.nii.gz"


def _beside(out: Path) -> Path:
    """Name the file of probabilities beside a label map."""
    return out.with_name(
        f"{out.name.removesuffix('.gz').removesuffix('.nii')}_probabilities.nii.gz"
    )
