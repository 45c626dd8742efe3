"""A generated data set in the form of BraTS, so that everything runs without a download."""

import errno
import gzip
import io
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from joblib import Parallel, cpu_count, delayed, parallel_config
from joblib.externals.loky.process_executor import TerminatedWorkerError
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bts_lightning.data.phantom import space as phantom_space
from bts_lightning.data.phantom.anatomy import blurred_atlas, draw_warp, load_atlas, make_tissues
from bts_lightning.data.phantom.contrast import render
from bts_lightning.data.phantom.preview import contact_sheet
from bts_lightning.data.phantom.raw import scan_raw, write_raw
from bts_lightning.data.phantom.space import FULL_SIZE, head_grid
from bts_lightning.data.phantom.tumour import draw_tumour, grow, operate, push_aside
from bts_lightning.errors import DataError
from bts_lightning.files import alone, content, unfinished, write_whole
from bts_lightning.modalities import MODALITIES, Modality

# Raised when the same seed gives other images: an older phantom is never taken for a new one.
RECIPE = 1
RECORD = "phantom.json"


@dataclass(frozen=True)
class Form:
    """How a release of BraTS calls a case and its files, and numbers its labels.

    Attributes:
        values: tissue -> value in the file, by position.
    """

    case: str
    files: dict[Modality, str]
    label: str
    values: tuple[int, ...]


BEFORE = Form(
    "BraTS2021_{:05d}",
    {"t1": "_t1", "t1c": "_t1ce", "t2": "_t2", "flair": "_flair"},
    "_seg",
    (0, 1, 2, 4),
)
# After treatment, as BraTS 2024 has it.
AFTER = Form(
    "BraTS-GLI-{:05d}-100",
    {"t1": "-t1n", "t1c": "-t1c", "t2": "-t2w", "flair": "-t2f"},
    "-seg",
    (0, 1, 2, 3, 4),
)
# As a scanner gives them; `raw.py` writes the files.
RAW = Form("patient_{:05d}", {m: m for m in MODALITIES}, "seg", (0, 1, 2, 4))
# Peak of a worker at full size is 0.8 GB; some is left for the rest of the machine.
BYTES_PER_WORKER = 1_200_000_000
PREVIEW_ROWS = 6


def write_phantom(
    out: Path,
    cases: int = 40,
    seed: int = 0,
    size: tuple[int, int, int] = FULL_SIZE,
    preview: bool = False,
    workers: int | None = None,
    *,
    cavities: bool = False,
    raw: bool = False,
) -> Path:
    """Write generated patients; those that are there already stay.

    Args:
        out: a folder of its own.
        cases: how many.
        seed: the same one gives the same bytes.
        size: of the grid.
        preview: also draw a contact sheet.
        workers: processes.
        cavities: patients after surgery, as in BraTS 2024; by default before it, as in BraTS 2021.
        raw: with skull, moved between the scans, each scan on its own grid.
    """
    _check(cases, seed, size)
    if raw and (cavities or preview):
        raise DataError("raw scans are of patients before surgery, and have no preview")
    form = RAW if raw else AFTER if cavities else BEFORE
    out.mkdir(parents=True, exist_ok=True)
    with alone(out) as turn:
        _claim(out, cases, seed, size, form)
        if turn == "ours":
            # Alone here, so what is unfinished was left by a process that was killed.
            for left in out.glob(f".{form.case.partition('{')[0]}*.part"):
                shutil.rmtree(left)
        missing = [index for index in range(cases) if not (out / case_name(index, form)).exists()]
        _write_all(out, missing, seed, size, workers, form)
        if preview:
            shown = range(min(cases, PREVIEW_ROWS))
            values = {value: tissue for tissue, value in enumerate(form.values)}
            rows = {case_name(i, form): case_files(out, i, form) for i in shown}
            contact_sheet(rows, values, out / "preview.png")
    return out


def generate_case(
    seed: int, index: int, size: tuple[int, int, int] = FULL_SIZE, form: Form = BEFORE
) -> tuple[dict[Modality, NDArray[np.int16]], NDArray[np.uint8], NDArray[np.float64]]:
    """Make one patient: four images, the label map in the form's values, and the affine.

    The same seed and index are the same head with the same tumour at any size.
    """
    # A generator a concern: what one part draws cannot shift what another one gets.
    body, disease, growth, folds, scanner, surgery = (
        np.random.default_rng([seed, index, concern]) for concern in range(6)
    )
    grid, atlas = head_grid(size), load_atlas()
    warp = draw_warp(body, atlas)
    tumour = draw_tumour(disease, warp, atlas)
    warp = push_aside(warp, tumour, atlas)
    if form == AFTER:
        tumour = operate(surgery, tumour)
    tissues = make_tissues(folds, warp, blurred_atlas(phantom_space.spacing(size)), grid)
    part = grid.crop(tissues.box)
    grown = grow(growth, tumour, warp, atlas, tissues, part)
    images = {}
    for modality, image in render(scanner, tissues, grown, part).items():
        images[modality] = np.zeros(size, np.int16)
        images[modality][tissues.box] = image
    label = np.zeros(size, np.uint8)
    label[tissues.box][grown.box] = np.array(form.values, np.uint8)[grown.label]
    return images, label, phantom_space.affine(size)


def case_name(index: int, form: Form = BEFORE) -> str:
    """Name a case as BraTS does."""
    return form.case.format(index)


def case_files(out: Path, index: int, form: Form = BEFORE) -> tuple[dict[Modality, Path], Path]:
    """Give the paths of a case's images and label map."""
    name = case_name(index, form)
    folder = out / name
    images = {m: folder / f"{name}{form.files[m]}.nii.gz" for m in MODALITIES}
    return images, folder / f"{name}{form.label}.nii.gz"


def _check(cases: int, seed: int, size: tuple[int, int, int]) -> None:
    if cases < 1 or seed < 0:
        raise DataError(
            f"{cases} cases of seed {seed} cannot be made; give 1 or more, and 0 or more"
        )
    if len(size) != 3 or not all(16 <= n <= full for n, full in zip(size, FULL_SIZE, strict=True)):
        raise DataError(
            f"phantom size {'x'.join(map(str, size))} cannot be made; each edge must be from 16 to "
            f"that of {'x'.join(map(str, FULL_SIZE))}, for example 96x96x80"
        )


def _claim(out: Path, cases: int, seed: int, size: tuple[int, int, int], form: Form) -> None:
    """Refuse a folder with anything but a part of this very phantom, and sign an empty one."""
    record = out / RECORD
    made: dict[str, object] = {"seed": seed, "size": list(size), "recipe": RECIPE}
    kind = {AFTER.case: {"cavities": True}, RAW.case: {"raw": True}}.get(form.case, {})
    wanted = json.dumps(made | kind)
    entries = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    start = form.case.partition("{")[0]
    beyond = sorted(n for n in entries if case_name(cases, form) <= n < f"{start}a")
    found = content(record).decode(errors="replace").strip() if record.exists() else None
    if entries and found is None:
        what = f"is not empty and not a phantom (it holds {min(entries)!r})"
    elif found not in (None, wanted):
        what = f"holds another phantom ({found}), not {wanted}"
    elif beyond:
        what = f"holds more than the {cases} cases asked for ({beyond[0]}, ...)"
    else:
        write_whole(record, wanted + "\n")
        return
    raise DataError(f"{out} {what}; name a new folder, or delete this one")


def _write_all(
    out: Path,
    missing: list[int],
    seed: int,
    size: tuple[int, int, int],
    workers: int | None,
    form: Form,
) -> None:
    console = Console(stderr=True)
    columns = (TextColumn("phantom"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    workers = workers or max(1, min(cpu_count(), memory // BYTES_PER_WORKER))
    # A worker whose parent was killed waits for work for so many seconds, then it ends.
    with parallel_config("loky", idle_worker_timeout=20):
        pool = Parallel(min(workers, max(1, len(missing))), return_as="generator_unordered")
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        jobs = (
            delayed(_write_case)(out, index, seed, size, form, os.getpid()) for index in missing
        )
        try:
            for _ in progress.track(pool(jobs), total=len(missing)):
                pass
        except TerminatedWorkerError as error:
            raise DataError(
                "a process that wrote the phantom was killed, which is what the system does when "
                "memory runs out; ask for fewer workers"
            ) from error


def _write_case(
    out: Path, index: int, seed: int, size: tuple[int, int, int], form: Form, asked_by: int
) -> None:
    if asked_by not in (os.getpid(), os.getppid()):
        return  # who asked was killed
    images, label, affine = generate_case(seed, index, size, form)
    paths, label_path = case_files(out, index, form)
    part = unfinished(out / case_name(index, form))
    part.mkdir()
    if form == RAW:
        scanner = np.random.default_rng([seed, index, 6])
        write_raw(part, scan_raw(scanner, images, size), label)
    else:
        for modality, path in paths.items():
            _save(images[modality], affine, part / path.name)
        _save(label, affine, part / label_path.name)
    try:
        part.rename(out / case_name(index, form))
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        # On a disk without locks another process may have been faster, with the same bytes.
        shutil.rmtree(part)


def _save(
    values: NDArray[np.int16] | NDArray[np.uint8], affine: NDArray[np.float64], path: Path
) -> None:
    """Write a NIfTI file whose bytes are its content's alone: gzip notes no time, no name."""
    image = nib.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    packed = io.BytesIO()
    with gzip.GzipFile("", "wb", compresslevel=3, fileobj=packed, mtime=0) as stream:
        stream.write(image.to_bytes())
    path.write_bytes(packed.getvalue())
