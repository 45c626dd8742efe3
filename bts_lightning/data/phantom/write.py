"""A generated data set in the form of BraTS 2021, so that everything runs without a download."""

import errno
import gzip
import io
import json
import multiprocessing
import os
import shutil
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bts_lightning.data.phantom import space as phantom_space
from bts_lightning.data.phantom.anatomy import blurred_atlas, draw_warp, load_atlas, make_tissues
from bts_lightning.data.phantom.contrast import render
from bts_lightning.data.phantom.preview import contact_sheet
from bts_lightning.data.phantom.space import FULL_SIZE, head_grid
from bts_lightning.data.phantom.tumour import draw_tumour, grow, push_aside
from bts_lightning.errors import DataError
from bts_lightning.files import alone, unfinished, write_whole
from bts_lightning.modalities import MODALITIES, Modality

# Raised when the same seed gives other images: an older phantom is never taken for a new one.
RECIPE = 1
RECORD = "phantom.json"
FILE_NAMES: dict[Modality, str] = {"t1": "t1", "t1c": "t1ce", "t2": "t2", "flair": "flair"}
# Compressed bytes a voxel of the grid, five files together; measured 1.2 at 1 mm, 1.3 at 96x96x80.
BYTES_PER_VOXEL = 1.6
# Peak of a worker at full size is 0.8 GB; some is left for the rest of the machine.
BYTES_PER_WORKER = 1_200_000_000
PREVIEW_ROWS = 6
GUARD = 'in a script call write_phantom below `if __name__ == "__main__":`, or with workers=1'


def write_phantom(
    out: Path,
    cases: int = 40,
    seed: int = 0,
    size: tuple[int, int, int] = FULL_SIZE,
    preview: bool = False,
    workers: int | None = None,
) -> Path:
    """Write `cases` generated patients as BraTS 2021 does; those that are there already stay."""
    _refuse_to_wait_for_itself()
    _check(cases, seed, size)
    out.mkdir(parents=True, exist_ok=True)
    with alone(out) as turn:
        _claim(out, cases, seed, size)
        if turn == "ours":
            # Alone here, so what is unfinished was left by a process that was killed.
            for left in out.glob(".BraTS2021_*.part"):
                shutil.rmtree(left)
        missing = [index for index in range(cases) if not (out / case_name(index)).exists()]
        _check_space(out, len(missing), size)
        _write_all(out, missing, seed, size, workers)
        if preview:
            shown = range(min(cases, PREVIEW_ROWS))
            contact_sheet({case_name(i): case_files(out, i) for i in shown}, out / "preview.png")
    return out


def generate_case(
    seed: int, index: int, size: tuple[int, int, int] = FULL_SIZE
) -> tuple[dict[Modality, NDArray[np.int16]], NDArray[np.uint8], NDArray[np.float64]]:
    """Make one patient: four images, the label map (0, 1, 2, 4) and the affine.

    The same seed and index are the same head with the same tumour at any size.
    """
    # A generator a concern: what one part draws cannot shift what another one gets.
    body, disease, growth, folds, scanner = (
        np.random.default_rng([seed, index, concern]) for concern in range(5)
    )
    grid, atlas = head_grid(size), load_atlas()
    warp = draw_warp(body, atlas)
    tumour = draw_tumour(disease, warp, atlas)
    warp = push_aside(warp, tumour, atlas)
    tissues = make_tissues(folds, warp, blurred_atlas(phantom_space.spacing(size)), grid)
    part = grid.crop(tissues.box)
    grown = grow(growth, tumour, warp, atlas, tissues, part)
    images = {}
    for modality, image in render(scanner, tissues, grown, part).items():
        images[modality] = np.zeros(size, np.int16)
        images[modality][tissues.box] = image
    label = np.zeros(size, np.uint8)
    label[tissues.box][grown.box] = grown.label
    return images, label, phantom_space.affine(size)


def case_name(index: int) -> str:
    """Name a case as BraTS 2021 does."""
    return f"BraTS2021_{index:05d}"


def case_files(out: Path, index: int) -> tuple[dict[Modality, Path], Path]:
    """Give the paths of a case's images and label map."""
    name = case_name(index)
    folder = out / name
    images = {m: folder / f"{name}_{FILE_NAMES[m]}.nii.gz" for m in MODALITIES}
    return images, folder / f"{name}_seg.nii.gz"


def _check(cases: int, seed: int, size: tuple[int, int, int]) -> None:
    if cases < 1:
        raise DataError(f"a phantom of {cases} cases cannot be made; ask for at least 1")
    if seed < 0:
        raise DataError(f"seed {seed} is negative; give 0 or more")
    if (
        len(size) != 3
        or min(size) < 16
        or any(n > full for n, full in zip(size, FULL_SIZE, strict=True))
    ):
        raise DataError(
            f"phantom size {'x'.join(map(str, size))} cannot be made; each edge must be from 16 to "
            f"that of {'x'.join(map(str, FULL_SIZE))}, for example 96x96x80"
        )


def _claim(out: Path, cases: int, seed: int, size: tuple[int, int, int]) -> None:
    """Refuse a folder with anything but a part of this very phantom, and sign an empty one."""
    record = out / RECORD
    wanted = {"seed": seed, "size": list(size), "recipe": RECIPE}
    entries = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    if entries and not record.is_file():
        raise DataError(
            f"{out} is not empty and not a phantom (it holds {min(entries)!r}); name a new folder"
        )
    if record.is_file():
        try:
            found = json.loads(record.read_text())
        except ValueError:
            found = None
        if found != wanted:
            raise DataError(
                f"{out} holds another phantom ({found}), not {wanted}; name a new folder, or "
                "delete this one"
            )
        beyond = sorted(name for name in entries if case_name(cases) <= name < "BraTS2021_a")
        if beyond:
            raise DataError(
                f"{out} holds more than the {cases} cases asked for ({beyond[0]}, ...); ask for as "
                "many, name a new folder, or delete this one"
            )
    else:
        write_whole(record, json.dumps(wanted) + "\n")


def _check_space(out: Path, missing: int, size: tuple[int, int, int]) -> None:
    need = int(missing * np.prod(size) * BYTES_PER_VOXEL)
    free = shutil.disk_usage(out).free
    if need > free:
        raise DataError(
            f"{missing} phantom cases need about {need / 1e9:.1f} GB and {out} has "
            f"{free / 1e9:.1f} GB free; ask for fewer cases, a smaller size or another disk"
        )


def _write_all(
    out: Path, missing: list[int], seed: int, size: tuple[int, int, int], workers: int | None
) -> None:
    console = Console(stderr=True)
    columns = (TextColumn("phantom"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("phantom", total=len(missing))
        workers = min(workers or _affordable_workers(), len(missing))
        if workers <= 1:
            for index in missing:
                _write_case(out, index, seed, size)
                progress.advance(bar)
            return
        # Spawned, because a fork of a process with threads may hang.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
            jobs = [pool.submit(_write_case, out, index, seed, size) for index in missing]
            try:
                for job in as_completed(jobs):
                    job.result()
                    progress.advance(bar)
            except BrokenProcessPool as error:
                raise DataError(
                    "a process that wrote the phantom ended; if memory ran out, ask for fewer "
                    "workers; " + GUARD
                ) from error
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _refuse_to_wait_for_itself() -> None:
    """Stop a worker that runs an unguarded script again, before it waits for its parent's lock."""
    # Set while a spawned process imports the script that started it; there is no public name.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise DataError(GUARD)


def _affordable_workers() -> int:
    # A batch system may give a job fewer cores than the machine has; only Linux can tell.
    alone = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if alone else os.cpu_count() or 1
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(cores, memory // BYTES_PER_WORKER))


def _end_with_parent() -> None:
    """Stop this worker when its parent is killed; an idle one would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch(sentinel: int) -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()


def _write_case(out: Path, index: int, seed: int, size: tuple[int, int, int]) -> None:
    images, label, affine = generate_case(seed, index, size)
    paths, label_path = case_files(out, index)
    part = unfinished(out / case_name(index))
    part.mkdir()
    for modality, path in paths.items():
        _save(images[modality], affine, part / path.name)
    _save(label, affine, part / label_path.name)
    try:
        part.rename(out / case_name(index))
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
