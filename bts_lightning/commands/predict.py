"""`bts predict`: segment patients with whatever modalities they have."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bts_lightning.commands.preprocess import add_images, add_recipe, raw_recipe
from bts_lightning.commands.words import RUN_WORDS, runs_a_network, runs_and_overrides, takes_words
from bts_lightning.errors import Parser, UserError
from bts_lightning.modalities import MODALITIES, Modality
from bts_lightning.runs.opening import open_runs

if TYPE_CHECKING:
    from bts_lightning.preprocess.patient import Recipe


def add_arguments(parser: Parser) -> None:
    takes_words(parser, "RUN|EXPERIMENT|KEY=VALUE", RUN_WORDS)
    add_images(parser, "FILE", "if it was acquired")
    parser.add_argument("--folder", type=Path, help="a data set instead of one patient")
    parser.add_argument("--raw", action="store_true", help="as scanned, see bts preprocess")
    add_recipe(parser)
    parser.add_argument("--out", type=Path, required=True, help="file (folder with --folder)")
    parser.add_argument("--probabilities", action="store_true", help="also write probabilities")
    runs_a_network(parser)


def run(args: argparse.Namespace) -> int:
    folders, overrides = runs_and_overrides(args.words)
    given = {modality: getattr(args, modality) for modality in MODALITIES}
    predict(
        folders,
        args.out,
        images={modality: file for modality, file in given.items() if file is not None},
        folder=args.folder,
        words=overrides,
        allow=args.allow,
        checkpoint=args.checkpoint,
        with_probabilities=args.probabilities,
        device=args.device,
        raw=raw_recipe(args),
    )
    return 0


def predict(
    run: Path | Sequence[Path],
    out: Path,
    *,
    images: Mapping[Modality, Path] | None = None,
    folder: Path | None = None,
    words: Sequence[str] = (),
    allow: Sequence[str] = (),
    checkpoint: Path | None = None,
    with_probabilities: bool = False,
    device: str | None = None,
    raw: "Recipe | None" = None,
) -> list[Path]:
    """Segment one patient from its images, or all cases of a folder, and give the files written.

    Args:
        run: the run whose network is used; of several the probabilities are averaged.
        out: a `.nii.gz` file for one patient, a folder for a folder of cases.
        images: one file a modality; those that were never acquired are simply not there.
        folder: a data set in any layout that `bts prepare` knows.
        words: overrides, as `evaluation.overlap=0.25`.
        allow: packages that `_target_` may name beyond ours.
        checkpoint: another checkpoint than the best.
        with_probabilities: also write the network's probabilities beside the label map.
        device: `cpu`, `cuda` or `cuda:1`; a GPU if there is one by default.
        raw: the images are as scanned: prepare them so, and segment on their own grids as well.
    """
    _check_places(out, images or {}, folder)
    opened = open_runs(run, words, allow, checkpoint)
    # torch is imported once nothing is wrong with what was typed.
    from bts_lightning.commands.segment import Segmenter

    segmenter = Segmenter(opened, device, with_probabilities=with_probabilities)
    if raw:
        from bts_lightning.commands.raw import segment_raw, segment_raw_folder

        if folder:
            return segment_raw_folder(segmenter, folder, out, raw)
        return segment_raw(segmenter, images or {}, out, raw)
    return segmenter.folder(folder, out) if folder else [segmenter.patient(images or {}, out)]


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
