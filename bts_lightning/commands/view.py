"""`bts view`: look at a patient in the browser, and switch modalities off and on."""

import argparse
import os
import re
import sys
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bts_lightning.commands.preprocess import add_images
from bts_lightning.commands.words import (
    names_among,
    runs_a_network,
    runs_and_overrides,
    takes_words,
)
from bts_lightning.data.splits import PARTS
from bts_lightning.errors import Parser, UserError
from bts_lightning.modalities import MODALITIES, Modality, Subset, parse_subset
from bts_lightning.report.screen import Screen
from bts_lightning.runs.folder import RUNS
from bts_lightning.viewer.niivue import niivue_module
from bts_lightning.viewer.opening import open_session

if TYPE_CHECKING:
    from bts_lightning.viewer.server import Viewer

console = Screen()
STUDY = "study.yaml"


def add_arguments(parser: Parser) -> None:
    takes_words(parser, "RUN|CASE|KEY=VALUE", "runs, or a study: side by side; a case: shown first")
    add_images(parser, "FILE", "of one patient")
    parser.add_argument("--part", default="test", choices=PARTS, help="cases (%(default)s)")
    parser.add_argument("--subset", help="shown first, as t1+t2 (all that the case has)")
    parser.add_argument("--at", metavar="X,Y,Z", help="voxel that the crosshair begins at")
    parser.add_argument("--port", type=int, default=0, help="of this machine (a free one)")
    parser.add_argument("--no-open", action="store_true", help="only print the address")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="write a picture, and end")
    parser.add_argument(
        "--report", action="store_true", help="put a picture without T1c into the run's report"
    )
    runs_a_network(parser)


def run(args: argparse.Namespace) -> int:
    """Open runs and cases, serve them until Ctrl-C."""
    niivue = niivue_module()  # before the seconds that weights take
    images: dict[Modality, Path] = {m: f for m in MODALITIES if (f := getattr(args, m)) is not None}
    subset, at = _subset(args.subset), _voxel(args.at)
    if args.picture and args.picture.suffix != ".png":
        raise UserError(f"--picture {args.picture}: the picture is a file that ends in .png")
    folders, case, overrides = _told_apart(args.words)
    evaluated = None
    if args.report:
        if len(folders) > 1 or case or images or subset or args.picture:
            raise UserError("--report chooses the case and the picture by itself: give one run")
        evaluated, case, subset = _worst(folders[0])
    if images and case is not None:
        raise UserError(f"{case}: give a case of the run, or the images of a patient, not both")
    session = open_session(
        folders,
        case,
        images=images,
        words=overrides,
        allow=args.allow,
        part=args.part,
        checkpoint=args.checkpoint,
        device=args.device,
        subset=subset,
        at=at,
        tell=lambda text: console.print(text, style="yellow"),
    )
    from bts_lightning.viewer.server import Viewer

    server = Viewer(session, niivue, args.port)
    if args.picture or evaluated is not None:
        from bts_lightning.viewer.headless import take_picture

        if args.picture:
            console.print(str(take_picture(server, args.picture)))
        else:
            from bts_lightning.report.see import PICTURE
            from bts_lightning.report.write import write_report

            assert evaluated is not None
            take_picture(server, evaluated / PICTURE, "outline=1")
            console.print(f"report  {write_report(evaluated)}")
        return 0
    serve(server, opens=not args.no_open)
    return 0


def serve(server: "Viewer", *, opens: bool) -> None:
    """Answer until Ctrl-C."""
    threading.Thread(target=server.serve_forever, daemon=True, name="server").start()
    console.print(f"view    {server.address}\n        Ctrl-C ends it")
    if opens:
        webbrowser.open(server.address)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        # Threads are in the middle of a convolution, which nothing can interrupt: what they write
        # appears whole or not at all, so the process may end here.
        console.print("ended")
        sys.stdout.flush()
        os._exit(0)


def _worst(run: Path) -> tuple[Path, str, Subset]:
    """Choose the case that loses most without T1c, of the newest evaluation."""
    from bts_lightning.report.see import WITHOUT_T1C, largest_loss
    from bts_lightning.report.table import EvaluationTable, evaluation_folder

    folder = evaluation_folder(run)
    found = largest_loss(EvaluationTable.read(folder))
    if found is None:
        raise UserError(
            f"{folder} has no case that was scored with all modalities and without T1c; "
            "evaluate with all subsets"
        )
    return folder, found[0], parse_subset(WITHOUT_T1C)


def _told_apart(words: Sequence[str]) -> tuple[list[Path], str | None, list[str]]:
    """Tell runs, studies and at most one case from each other."""
    names = names_among(words)
    places = [n for i, n in enumerate(names) if i == 0 or Path(n).exists() or (RUNS / n).is_dir()]
    cases = [name for name in names if name not in places]
    if len(cases) > 1:
        raise UserError(
            f"{cases[0]} and {cases[1]} are no runs; one case is shown first, and the page has all"
        )
    case = cases[0] if cases else None
    studies = [name for name in places if (Path(name) / STUDY).is_file()]
    of_studies = [found for name in studies for found in _runs_of(name)]
    rest = [word for word in words if word not in (*cases, *studies)]
    if of_studies and not names_among(rest):
        return of_studies, case, rest
    folders, overrides = runs_and_overrides(rest)
    return [*of_studies, *folders], case, overrides


def _runs_of(study: str) -> list[Path]:
    found = sorted(file.parent for file in Path(study).glob("*/*/config.yaml"))
    if not found:
        raise UserError(f"{study} is a study without a run; `bts study` trains them")
    return found


def _subset(text: str | None) -> Subset | None:
    try:
        return None if text is None else parse_subset(text)
    except ValueError as error:
        raise UserError(f"--subset: {error}") from error


def _voxel(text: str | None) -> tuple[int, int, int] | None:
    if text is None:
        return None
    if not re.fullmatch(r"\d{1,4},\d{1,4},\d{1,4}", text):
        raise UserError(f"--at {text}: give three numbers of a voxel, as 120,130,75")
    x, y, z = map(int, text.split(","))
    return x, y, z
