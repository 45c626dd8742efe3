"""`bts challenge`: what the container of a challenge runs, without argument or network."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bts_lightning.data.cache.reading import BrokenCaseError
from bts_lightning.errors import DataError, Parser, UserError
from bts_lightning.modalities import Modality
from bts_lightning.runs.folder import find_runs
from bts_lightning.runs.opening import open_runs

if TYPE_CHECKING:
    from bts_lightning.commands.segment import Segmenter

# As BraTS has named its files since 2023.
NAMES: dict[str, Modality] = {"t1n": "t1", "t1c": "t1c", "t2w": "t2", "t2f": "flair"}


def add_arguments(parser: Parser) -> None:
    # The places that challenges mount; a model is put beside them when the image is built.
    for name in ("model", "input", "output"):
        parser.add_argument(f"--{name}", type=Path, default=Path(f"/{name}"), help="(%(default)s)")
    parser.add_argument("--device", help="cpu or cuda (a GPU if there is one)")


def run(args: argparse.Namespace) -> int:
    return challenge(find_runs(args.model), args.input, args.output, device=args.device)


def challenge(
    run: Path | Sequence[Path], images: Path, out: Path, *, device: str | None = None
) -> int:
    """Segment `CASE/CASE-{t1c,t1n,t2f,t2w}.nii.gz` into `CASE.nii.gz`, each case for itself.

    Any modality may be missing; one that cannot be read is taken for missing, and said. A case of
    which nothing can be read is said and left out, and so is one that fails in any other way.

    Args:
        run: what segments: a run, several, or a package.
        images: a folder with a folder a case.
        out: the folder for the label maps.
        device: `cpu` or `cuda`; a GPU if there is one by default.

    Returns:
        The exit status: 0 if there is a label map, else 1.
    """
    if not images.is_dir():
        raise UserError(f"{images} is no folder; mount the cases there, a folder each")
    cases = sorted(one for one in images.iterdir() if one.is_dir() and one.name[0] != ".")
    if not cases:
        raise UserError(f"{images} has no case; each is a folder CASE with CASE-t2f.nii.gz …")
    opened = open_runs(run)
    # torch is imported once nothing is wrong with what was given.
    from bts_lightning.commands.segment import Segmenter, console

    segmenter = Segmenter(opened, device, with_probabilities=False)
    written = 0
    for case in cases:
        files = {m: case / f"{case.name}-{name}.nii.gz" for name, m in NAMES.items()}
        there = {modality: file for modality, file in files.items() if file.exists()}
        try:
            _segment(segmenter, there, out / f"{case.name}.nii.gz")
            written += 1
        # Whatever is wrong with one case, the others are not to wait for it.
        except Exception as error:
            told = " ".join(str(error).split()) or type(error).__name__
            console.print(f"left out: {case.name}: {told}", style="yellow")
    console.print(f"{written} of {len(cases)} cases in {out}")
    return 0 if written else 1


def _segment(segmenter: "Segmenter", files: Mapping[Modality, Path], out: Path) -> None:
    """Segment a case, at need without what cannot be read of it."""
    try:
        segmenter.patient(files, out)
    except DataError as error:
        faults = error.__cause__.faults if isinstance(error.__cause__, BrokenCaseError) else []
        blamed = {fault.file for fault in faults}
        rest = {modality: file for modality, file in files.items() if file not in blamed}
        if not blamed or not rest:
            raise
        segmenter.patient(rest, out)
        from bts_lightning.commands.segment import console

        console.print(f"{out.name}: taken for missing: {error}", style="yellow")
