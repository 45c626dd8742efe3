"""`bts preprocess`: bring patients from the scanner to the grid and the names of BraTS."""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bts_lightning.errors import DataError, Parser, UserError
from bts_lightning.modalities import MODALITIES, Modality
from bts_lightning.report.screen import Screen

if TYPE_CHECKING:
    from bts_lightning.preprocess.patient import Recipe

# As in `preprocess.strip`, which takes a while to import.
STRIPS = ("auto", "atlas", "hd-bet")


def add_arguments(parser: Parser) -> None:
    parser.add_argument("out", type=Path, help="data set to write to, as bts prepare reads it")
    add_images(parser, "SERIES", "NIfTI, NRRD or DICOM folder")
    parser.add_argument("--name", default="patient", help="of the case (%(default)s); no real name")
    parser.add_argument("--folder", type=Path, help="many patients: a folder each, as PATIENT/t1c")
    parser.add_argument("--workers", type=int, help="patients at a time")
    parser.add_argument("--keep-skull", action="store_true", help="whole heads, with the face")
    add_recipe(parser)


def add_images(parser: Parser, metavar: str, text: str) -> None:
    """Add an option for each modality; one that is typed twice would lose the first."""

    class Once(argparse.Action):
        def __call__(self, _: object, args: argparse.Namespace, value: Any, *__: object) -> None:
            if getattr(args, self.dest) is not None:
                parser.error(f"--{self.dest} is given twice: {getattr(args, self.dest)}, {value}")
            setattr(args, self.dest, value)

    for modality in MODALITIES:
        parser.add_argument(f"--{modality}", type=Path, action=Once, metavar=metavar, help=text)


def add_recipe(parser: Parser) -> None:
    """Add what `bts predict --raw` asks as well."""
    parser.add_argument("--strip", choices=STRIPS, default="auto", help="brain mask by")
    parser.add_argument("--mask", type=Path, help="brain mask on the grid of one of the scans")
    parser.add_argument("--n4", action="store_true", help="take coil shading away first")
    parser.add_argument("--atlas", type=Path, help="another stripped brain than ICBM 152")


def recipe_of(args: argparse.Namespace) -> "Recipe":
    from bts_lightning.preprocess.patient import Recipe
    from bts_lightning.preprocess.strip import chosen

    chosen(args.strip)  # says at once what is not installed
    for name, file in (("mask", args.mask), ("atlas", args.atlas)):
        if file is not None and not file.exists():
            raise UserError(f"--{name} {file} is not there; give a file")
    return Recipe(args.strip, vars(args).get("keep_skull", False), args.n4, args.atlas, args.mask)


def raw_recipe(args: argparse.Namespace) -> "Recipe | None":
    """Give what `bts predict` prepares raw scans by; its options mean nothing without --raw."""
    if not args.raw and (args.mask or args.n4 or args.atlas or args.strip != "auto"):
        raise UserError("--strip, --mask, --n4 and --atlas belong to --raw")
    if args.raw and args.folder and args.mask:
        raise UserError("--mask is of one patient; leave it out with --folder")
    return recipe_of(args) if args.raw else None


def run(args: argparse.Namespace) -> int:
    """Prepare patients, write the page; give 2 when one failed."""
    images: dict[Modality, Path] = {m: f for m in MODALITIES if (f := getattr(args, m)) is not None}
    check_series(images, args.folder)
    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers is {args.workers}; give 1 or more")
    if args.folder and args.mask:
        raise UserError("--mask is of one patient; leave it out with --folder")
    if not args.name.strip():
        raise UserError("--name is empty; give a pseudonym, as 0007")
    check_out(args.out)
    from rich.progress import Progress

    from bts_lightning.preprocess.folder import done_before, find_patients, prepare_all, prepare_one
    from bts_lightning.preprocess.page import write_page

    recipe = recipe_of(args)
    bar = Screen(stderr=True)
    with Progress(console=bar, disable=not bar.is_terminal) as progress:
        if args.folder:
            patients = find_patients(args.folder)
            task = progress.add_task("preprocessing", total=len(patients))
            outcomes = []
            for outcome in prepare_all(patients, args.out, recipe, args.workers):
                outcomes.append(outcome)
                progress.advance(task)
        else:
            task = progress.add_task("reading", total=len(images) + 3)
            tell = lambda what: progress.update(task, description=what, advance=1)  # noqa: E731
            outcomes = [prepare_one(args.name, images, args.out, recipe, tell=tell)]
    console = Screen()
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if not args.folder and failed:
        raise DataError(failed[0].error)
    page = write_page([*outcomes, *done_before(args.out, outcomes)], args.out)
    for outcome in failed:
        console.print(f"{outcome.case}: {outcome.error}", style="yellow")
    if good := len(outcomes) - len(failed):
        console.print(f"{good} patient{'s' if good > 1 else ''} in {args.out}; look at {page}")
        console.print(f"next: bts predict RUN --folder {args.out} --out FOLDER")
    if failed:
        console.print(f"Failed: {len(failed)} of {len(outcomes)}; each is named above.")
    return 2 if failed else 0


def check_out(out: Path) -> None:
    """Refuse, before minutes of work, a folder that cannot be written to."""
    place = next(place for place in (out, *out.parents) if place.exists())
    if not place.is_dir():
        raise UserError(f"{place} is a file; give a folder to write to")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{out} cannot be written: no permission in {place}; give another folder")


def check_series(images: Mapping[Modality, Path], folder: Path | None) -> None:
    """Refuse, before any work, both or neither of one patient and many."""
    if bool(images) == (folder is not None):
        wanted = ", ".join(f"--{name} SERIES" for name in MODALITIES)
        both = " and not both" if images else ""
        raise UserError(
            f"give the series of one patient ({wanted}; one is enough) or --folder{both}"
        )
