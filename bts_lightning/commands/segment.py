"""`bts predict`: segment patients with whatever modalities they have."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from bts_lightning import config as configuration
from bts_lightning import runs
from bts_lightning.data.cache.normalise import Recipe
from bts_lightning.data.cache.prediction import write_probabilities
from bts_lightning.data.cache.prepare import load_case, read_images, write_prediction
from bts_lightning.data.cache.reading import BrokenCaseError
from bts_lightning.data.cache.ready import ReadyCase
from bts_lightning.data.layouts.find import find_cases
from bts_lightning.errors import DataError, UserError
from bts_lightning.inference import Protocol, label_map, probabilities
from bts_lightning.modalities import MODALITIES, Modality, subset_name
from bts_lightning.runs.devices import chosen_device
from bts_lightning.runs.opening import load_run, load_task
from bts_lightning.task import SegmentationTask

console = Console(highlight=False, markup=False, soft_wrap=True)


def predict(
    run: Path,
    out: Path,
    *,
    images: Mapping[Modality, Path] | None = None,
    folder: Path | None = None,
    words: Sequence[str] = (),
    checkpoint: Path | None = None,
    with_probabilities: bool = False,
    device: str | None = None,
) -> list[Path]:
    """Segment one patient from its images, or all cases of a folder, and give the files written.

    Args:
        run: the run whose network is used.
        out: a `.nii.gz` file for one patient, a folder for a folder of cases.
        images: one file a modality; those that were never acquired are simply not there.
        folder: a data set in any layout that `bts prepare` knows.
        words: overrides, as `evaluation.overlap=0.25`.
        checkpoint: another checkpoint than the best.
        with_probabilities: also write the network's probabilities beside the label map.
        device: `cpu`, `cuda` or `cuda:1`; a GPU if there is one by default.
    """
    _check_places(out, images or {}, folder)
    config = load_run(run, words)
    task = load_task(config, checkpoint or runs.best_checkpoint(run))
    chosen = chosen_device(device)
    task.to(chosen)
    protocol: Protocol = configuration.build(config.evaluation)
    # Images are normalised as those were that the network learned from.
    recipe = configuration.build(config.data).recipe
    if images:
        case = _read(images, recipe)
        _write(task, case, protocol, chosen, out, with_probabilities)
        console.print(f"{out}  from {subset_name(case.available)}")
        return [out]
    assert folder is not None
    found = find_cases(folder)
    faults = list(found.faults)
    written = []
    for listed in track(
        found.cases, "segmenting", console=console, disable=not console.is_terminal
    ):
        try:
            # Its label, if there is one, has no part in this: not even in where the crop lies.
            case = load_case(replace(listed, label=None), recipe)
        except BrokenCaseError as error:
            faults += error.faults
            continue
        file = out / f"{listed.name}.nii.gz"
        _write(task, case, protocol, chosen, file, with_probabilities)
        written.append(file)
    for fault in faults:
        console.print(f"left out: {fault}", style="yellow")
    if not written:
        raise UserError(f"{folder} has no case that can be segmented")
    console.print(f"{len(written)} label map{'s' if len(written) > 1 else ''} in {out}")
    return written


def _check_places(out: Path, images: Mapping[Modality, Path], folder: Path | None) -> None:
    """Refuse, before any work, what cannot be read or written where it is said to lie."""
    if bool(images) == (folder is not None):
        wanted = ", ".join(f"--{name} FILE" for name in MODALITIES)
        both = " and not both" if images else ""
        raise UserError(
            f"give the images of one patient ({wanted}; one is enough) or --folder{both}"
        )
    is_image = out.name.endswith((".nii.gz", ".nii"))
    if images and (not is_image or out.is_dir()):
        raise UserError(f"--out {out}: one patient's label map is a file that ends in .nii.gz")
    if folder is not None and (is_image or out.is_file()):
        raise UserError(f"--out {out}: the label maps of --folder go to a folder, one file a case")
    if file := next((place for place in out.parents if place.is_file()), None):
        raise UserError(f"--out {out}: {file} is a file and not a folder")
    given: dict[Path, Modality] = {}
    for modality, image in images.items():
        first = given.setdefault(image.resolve(), modality)
        if first != modality:
            raise UserError(f"--{first} and --{modality} are both {image}; each has its own file")
    if overwritten := given.get(out.resolve()):
        raise UserError(f"--out {out} is the image of --{overwritten}; give another file")


def _read(images: Mapping[Modality, Path], recipe: Recipe) -> ReadyCase:
    try:
        return read_images(images, recipe=recipe)
    except BrokenCaseError as error:
        # The files of one patient have no other name for their case.
        raise DataError("; ".join(f"{f.file}: {f.reason}" for f in error.faults)) from error


def _write(
    task: SegmentationTask,
    case: ReadyCase,
    protocol: Protocol,
    device: torch.device,
    out: Path,
    with_probabilities: bool,
) -> None:
    """Segment a case with all that it has."""
    averaged = probabilities(
        task.net, task.loss, case.image, case.available, protocol, case.available, device
    )
    labels = label_map(task.loss, torch.from_numpy(averaged).unsqueeze(0), protocol)
    if with_probabilities:
        name = out.name.removesuffix(".gz").removesuffix(".nii")
        write_probabilities(case, averaged, out.with_name(f"{name}_probabilities.nii.gz"))
    write_prediction(case, labels, out)
