"""`bts unpack`: a package as a folder, or what it knows of a case."""

import argparse
from pathlib import Path

from bts_lightning.errors import Parser, UserError
from bts_lightning.runs.container import SUFFIX, is_package, open_package, unpack


def add_arguments(parser: Parser) -> None:
    parser.add_argument("package", type=Path, metavar=f"FILE{SUFFIX}")
    parser.add_argument("folder", type=Path, nargs="?", help="a new one (named as the file)")
    text = "say whether this case, or its patient, was in the split; may be repeated"
    parser.add_argument("--seen", action="append", metavar="CASE", help=text)


def run(args: argparse.Namespace) -> int:
    if not is_package(args.package):
        raise UserError(f"{args.package}: a package is a file that ends in {SUFFIX}")
    if args.seen:
        if args.folder is not None:
            raise UserError("--seen unpacks nothing: leave the folder out")
        tell_seen(args.package, args.seen)
        return 0
    from bts_lightning.report.screen import Screen

    folder = args.folder or Path(args.package.stem)
    unpack(args.package, folder)
    Screen().print(
        f"{folder}  every part is what was packed\n"
        f"use     bts predict {folder} --flair FILE --out seg.nii.gz"
    )
    return 0


def tell_seen(package: Path, cases: list[str]) -> None:
    """Print, for each case and run, the part of the split in which it was."""
    from bts_lightning.report.screen import Screen
    from bts_lightning.runs.seen import Seen

    console = Screen()
    opened = open_package(package)
    for number, folder in enumerate(opened, 1):
        seen = Seen.load(folder)
        which = f"run {number}: " if len(opened) > 1 else ""
        if seen is None:
            console.print(f"{which}no split was kept with it, so nobody can tell", style="yellow")
            continue
        for case in cases:
            console.print(f"{which}{case}: {seen.part_of(case) or 'in no part of its split'}")
