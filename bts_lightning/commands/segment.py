"""What `bts predict` does: segment cases with a trained network."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.progress import track

from bts_lightning.config import build
from bts_lightning.data.cache.prediction import write_probabilities
from bts_lightning.data.cache.prepare import load_case, read_images, write_prediction
from bts_lightning.data.cache.reading import BrokenCaseError
from bts_lightning.data.cache.ready import ReadyCase
from bts_lightning.data.layouts.case import Case
from bts_lightning.data.layouts.find import find_cases
from bts_lightning.errors import DataError, UserError
from bts_lightning.files import overwritten
from bts_lightning.inference import each_subset
from bts_lightning.modalities import Modality, subset_name
from bts_lightning.report.screen import Screen
from bts_lightning.runs.devices import chosen_device
from bts_lightning.runs.opening import check_scheme, load_task
from bts_lightning.runs.temperature import with_temperature

console = Screen()


class Segmenter:
    """A trained network, and how its images were prepared."""

    def __init__(
        self,
        run: Path,
        nodes: dict[str, Any],
        checkpoint: Path,
        device: str | None,
        *,
        with_probabilities: bool,
    ) -> None:
        self.checkpoint = checkpoint
        self.task = load_task(nodes, checkpoint)
        self.device = chosen_device(device)
        self.task.to(self.device)
        self.protocol = with_temperature(build(nodes["evaluation"]), run, checkpoint)
        # Images are normalised as those were that the network learned from.
        data = build(nodes["data"])
        check_scheme(self.task, data)
        self.recipe = data.recipe
        self.with_probabilities = with_probabilities

    def patient(self, images: Mapping[Modality, Path], out: Path) -> Path:
        """Segment one patient from one file a modality."""
        self._refuse_to_overwrite([out], images.values())
        try:
            case = read_images(images, recipe=self.recipe)
        except BrokenCaseError as error:
            # The files of one patient have no other name for their case.
            raise DataError("; ".join(f"{f.file}: {f.reason}" for f in error.faults)) from error
        self._write(case, out)
        console.print(f"{out}  from {subset_name(case.available)}")
        return out

    def folder(self, folder: Path, out: Path) -> list[Path]:
        """Segment a data set; what is broken in it is named and left out."""
        found = find_cases(folder)
        faults = list(found.faults)
        # Labels are not read, but whoever has them wants to keep them.
        given = [file for case in found.cases for file in case.files]
        given += [file for fault in faults for file in (fault.file, *fault.others)]
        self._refuse_to_overwrite((_place(case, out) for case in found.cases), given)
        written = []
        for listed in track(
            found.cases, "segmenting", console=console, disable=not console.is_terminal
        ):
            try:
                # Its label, if there is one, has no part in this: not even in where the crop lies.
                case = load_case(replace(listed, label=None), self.recipe)
            except BrokenCaseError as error:
                faults += error.faults
                continue
            file = _place(listed, out)
            self._write(case, file)
            written.append(file)
        for fault in faults:
            console.print(f"left out: {fault}", style="yellow")
        if not written:
            raise UserError(f"{folder} has no case that can be segmented")
        console.print(f"{len(written)} label map{'s' if len(written) > 1 else ''} in {out}")
        return written

    def _write(self, case: ReadyCase, out: Path) -> None:
        """Segment a case with all that it has."""
        net, loss, present = self.task.net, self.task.loss, case.available
        ((labels, averaged),) = each_subset(
            net, loss, case.image, present, self.protocol, [present], self.device
        )
        if self.with_probabilities:
            write_probabilities(case, averaged[0].cpu().numpy(), _beside(out))
        write_prediction(case, labels, out)

    def _refuse_to_overwrite(self, outs: Iterable[Path], given: Iterable[Path]) -> None:
        """Compare all that will be written with all that is given, before anything is written."""
        written = list(outs)
        if self.with_probabilities:
            written += [_beside(out) for out in written]
        if both := overwritten(written, [*given, self.checkpoint]):
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
