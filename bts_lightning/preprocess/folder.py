"""Many patients: find their series, prepare several at once, keep what is done."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import SimpleITK as sitk
from joblib import Parallel, cpu_count, delayed, parallel_config
from joblib.externals.loky.process_executor import TerminatedWorkerError

from bts_lightning.data.phantom.write import BEFORE
from bts_lightning.errors import DataError
from bts_lightning.files import alone, content, sha256, unfinished, write_whole
from bts_lightning.modalities import MODALITIES, Modality
from bts_lightning.preprocess import sheet
from bts_lightning.preprocess.patient import Aligned, Recipe, align
from bts_lightning.preprocess.series import ENDINGS, Series, read_all
from bts_lightning.preprocess.strip import chosen

RECORD, SHEET = "preprocess.json", "preprocess.png"
# Pictures of those who failed lie here, without an image that could be taken for one of a case.
FAILED = "failed"
# Peak of a patient with HD-BET is 3 GB.
BYTES_PER_WORKER = 3_000_000_000
# As people and programs call them; the last part of a name counts, or the last two, as T1_post.
_WORDS: dict[str, Modality] = {
    **dict.fromkeys(("t1", "t1w", "t1n", "t1pre"), "t1"),
    **dict.fromkeys(("t1c", "t1ce", "t1gd", "t1post", "t1km", "ct1"), "t1c"),
    **dict.fromkeys(("t2", "t2w"), "t2"),
    **dict.fromkeys(("flair", "fla", "t2f", "t2flair"), "flair"),
}


@dataclass(frozen=True)
class Outcome:
    """What became of a patient.

    Attributes:
        error: why there are no images.
    """

    case: str
    state: Literal["done", "there", "failed"]
    facts: dict[str, Any]
    picture: Path | None = None
    error: str = ""


def find_patients(root: Path) -> dict[str, dict[Modality, Path]]:
    """Take each folder for a patient; what in it ends in the name of a modality is a series."""
    if not root.is_dir():
        raise DataError(f"--folder {root} is no folder; give one with a folder for each patient")
    patients = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if series := _series_in(folder):
            patients[folder.name] = series
    if not patients:
        raise DataError(
            f"--folder {root} holds no patient: each has a folder of its own, with files or DICOM "
            f"folders named {', '.join(MODALITIES)}, one or more of them"
        )
    return patients


def _series_in(folder: Path) -> dict[Modality, Path]:
    found: dict[Modality, Path] = {}
    for path in sorted(folder.iterdir()):
        ending = next((e for e in ENDINGS if path.name.lower().endswith(e)), None)
        if path.name.startswith(".") or (ending is None and not path.is_dir()):
            continue
        name = path.name.lower().removesuffix(ending or "")
        words = re.split(r"[^a-z0-9]+", name)
        modality = _WORDS.get("".join(words[-2:])) or _WORDS.get(words[-1])
        if modality is None:
            continue
        if modality in found:
            raise DataError(
                f"{folder} holds two series of {modality}: {found[modality].name} and {path.name}; "
                "keep one"
            )
        found[modality] = path
    return found


def prepare_all(
    patients: Mapping[str, Mapping[Modality, Path]],
    out: Path,
    recipe: Recipe,
    workers: int | None = None,
) -> Iterator[Outcome]:
    """Prepare several patients at once, and yield what became of each as it ends."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    most = max(1, min(cpu_count(), memory // BYTES_PER_WORKER))
    workers = min(workers or most, len(patients))
    threads = max(1, cpu_count() // workers)
    # A worker whose parent was killed waits for work for so many seconds, then it ends.
    with parallel_config("loky", idle_worker_timeout=20, inner_max_num_threads=threads):
        pool = Parallel(workers, return_as="generator_unordered")
    jobs = (
        delayed(prepare_one)(name, files, out, recipe, threads) for name, files in patients.items()
    )
    try:
        yield from pool(jobs)
    except TerminatedWorkerError as error:
        raise DataError(
            "a process that prepared a patient was killed, which is what the system does when "
            "memory runs out; ask for fewer --workers"
        ) from error


def done_before(out: Path, now: Sequence[Outcome]) -> list[Outcome]:
    """List the patients that earlier commands have prepared in a folder."""
    known = {outcome.case for outcome in now}
    records = (file for file in sorted(out.glob(f"*/{RECORD}")) if file.parent.name not in known)
    return [
        Outcome(file.parent.name, "there", json.loads(content(file)), file.parent / SHEET)
        for file in records
    ]


def prepare_one(
    name: str,
    files: Mapping[Modality, Path],
    out: Path,
    recipe: Recipe,
    threads: int | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Prepare one patient into a folder that appears whole; what cannot be used is an outcome."""
    if threads:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    case = case_name(name)
    try:
        return _prepare(case, files, out, recipe, tell)
    except DataError as error:
        return Outcome(case, "failed", {}, None, str(error))


def case_name(name: str) -> str:
    """Name a case so that it is read as one of BraTS 2021."""
    start = BEFORE.case.partition("{")[0]
    plain = re.sub(r"[^\w.+-]+", "-", name)
    return plain if plain.startswith(start) else f"{start}{plain}"


def _prepare(
    case: str,
    files: Mapping[Modality, Path],
    out: Path,
    recipe: Recipe,
    tell: Callable[[str], None],
) -> Outcome:
    tell("reading")
    scans = read_all(files)
    _hide_names(case, scans)
    request = _request(scans, recipe)
    home, picture = out / case, out / FAILED / f"{case}.png"
    if home.exists():
        facts = json.loads(content(home / RECORD)) if (home / RECORD).is_file() else {}
        if facts.get("request") != request:
            raise DataError(
                f"{home} is there, from other scans or other options; delete it, or give another "
                "name or folder"
            )
        return Outcome(case, "there", facts, home / SHEET)
    aligned = align(scans, recipe, tell)
    if aligned.faults:
        sheet.draw(aligned, picture)
        said = "; ".join(aligned.faults)
        return Outcome(case, "failed", aligned.facts, picture, f"{said}: look at {picture}")
    tell("writing")
    with _part(home) as part:
        _write_all(aligned, scans, part, case, recipe, request)
    picture.unlink(missing_ok=True)
    return Outcome(case, "done", aligned.facts, home / SHEET)


def write_images(aligned: Aligned, folder: Path, case: str, recipe: Recipe) -> dict[Modality, Path]:
    """Write the images of a case, without the scans' headers, which may tell names."""
    images = {}
    for modality in MODALITIES:
        if modality in aligned.heads:
            images[modality] = folder / f"{case}{BEFORE.files[modality]}.nii.gz"
            image = _bare(aligned.image(modality, recipe))
            sitk.WriteImage(image, str(images[modality]), useCompression=True)
    return images


def _write_all(
    aligned: Aligned,
    scans: Mapping[Modality, Series],
    folder: Path,
    case: str,
    recipe: Recipe,
    request: Mapping[str, Any],
) -> None:
    """Write images, mask, transforms, contact sheet and record of a case."""
    write_images(aligned, folder, case, recipe)
    for modality, transform in aligned.transforms.items():
        sitk.WriteTransform(transform, str(folder / f"brats_to_{modality}.tfm"))
    # Not as NIfTI, so that nobody takes it for an image.
    sitk.WriteImage(_bare(aligned.brain), str(folder / "brain_mask.nrrd"), useCompression=True)
    sheet.draw(aligned, folder / SHEET)
    facts = {**aligned.facts, "grids": {m: grid_of(scan.image) for m, scan in scans.items()}}
    write_whole(folder / RECORD, json.dumps({"request": request, **facts}, indent=1) + "\n")


def grid_of(image: sitk.Image) -> dict[str, Any]:
    """Describe a grid in plain numbers."""
    return {
        "size": image.GetSize(),
        "spacing": image.GetSpacing(),
        "origin": image.GetOrigin(),
        "direction": image.GetDirection(),
    }


def _bare(image: sitk.Image) -> sitk.Image:
    bare = sitk.GetImageFromArray(sitk.GetArrayViewFromImage(image))
    bare.CopyInformation(image)
    return bare


def _hide_names(case: str, scans: Mapping[Modality, Series]) -> None:
    """Refuse a name that tells what DICOM says of the patient."""
    told = {
        part
        for scan in scans.values()
        for name in scan.names
        for part in re.split(r"[\^\s]+", name)
    }
    if any(len(part) > 2 and part.lower() in case.lower() for part in told):
        raise DataError(
            "the case would be called by the patient's name or number as DICOM has it; give its "
            "folder, or --name, another name"
        )


def _request(scans: Mapping[Modality, Series], recipe: Recipe) -> dict[str, Any]:
    """Say what was asked for, without a path, which may tell a name."""
    # "auto" may mean another thing tomorrow.
    used = {"strip": "given" if recipe.mask else chosen(recipe.strip)}
    options = (
        asdict(recipe)
        | used
        | {
            name: file and sha256(file)
            for name, file in (("atlas", recipe.atlas), ("mask", recipe.mask))
        }
    )
    return {"scans": {m: scans[m].digest for m in sorted(scans)}, "recipe": options}


@contextmanager
def _part(home: Path) -> Iterator[Path]:
    """Make a folder that takes its place at the end; a killed process's is cleared."""
    home.parent.mkdir(parents=True, exist_ok=True)
    for left in home.parent.glob(f".{home.name}.*.part"):
        with alone(left, wait=False) as turn:
            if turn == "ours":
                shutil.rmtree(left)
    part = unfinished(home)
    part.mkdir()
    try:
        with alone(part):
            yield part
            part.rename(home)
    finally:
        shutil.rmtree(part, ignore_errors=True)
