"""`bts predict`: segment patients with whatever modalities they have."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from bts_lightning import config as configuration
from bts_lightning import runs
from bts_lightning.data.brats import find_cases
from bts_lightning.data.cache import load_case, read_images, write_prediction
from bts_lightning.data.prediction import write_probabilities
from bts_lightning.data.reading import BrokenCaseError
from bts_lightning.data.ready import ReadyCase
from bts_lightning.errors import UserError
from bts_lightning.evaluate import load_run, load_task
from bts_lightning.guards import check_accelerator
from bts_lightning.inference import Protocol, probabilities
from bts_lightning.modalities import MODALITIES, Modality, subset_name
from bts_lightning.task import SegmentationTask

console = Console(highlight=False, soft_wrap=True)


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
        device: `cpu` or `cuda`; a GPU if there is one by default.
    """
    if (images is None or not images) == (folder is None):
        wanted = ", ".join(f"--{name} FILE" for name in MODALITIES)
        raise UserError(f"give the images of one patient ({wanted}; one is enough) or --folder")
    if images and not out.name.endswith((".nii.gz", ".nii")):
        raise UserError(f"--out {out}: one patient's label map is a file that ends in .nii.gz")
    config = load_run(run, words)
    task = load_task(config, checkpoint or runs.best_checkpoint(run))
    chosen = _device(device)
    task.to(chosen)
    protocol: Protocol = configuration.build(config.evaluation)
    # Images are normalised as those were that the network learned from.
    recipe = configuration.build(config.data).recipe
    if images:
        case = read_images(images, recipe=recipe)
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
            case = load_case(listed, recipe)
        except BrokenCaseError as error:
            faults += error.faults
            continue
        file = out / f"{listed.name}.nii.gz"
        _write(task, case, protocol, chosen, file, with_probabilities)
        written.append(file)
    for fault in faults:
        console.print(f"[yellow]left out: {fault}[/]")
    if not written:
        raise UserError(f"{folder} has no case that can be segmented")
    console.print(f"{len(written)} label maps in {out}")
    return written


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
    label_map = task.loss.labels(torch.from_numpy(averaged).unsqueeze(0))[0]
    if with_probabilities:
        name = out.name.removesuffix(".gz").removesuffix(".nii")
        write_probabilities(case, averaged, out.with_name(f"{name}_probabilities.nii.gz"))
    write_prediction(case, label_map.numpy(), out)


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check_accelerator(name.partition(":")[0], key="--device")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: choose cpu, cuda or cuda:0") from error
