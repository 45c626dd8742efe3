"""`bts phantom`: a generated data set to try everything on."""

import argparse
from pathlib import Path

from bts_lightning.errors import Parser


def add_arguments(parser: Parser) -> None:
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--cases", type=int, default=40, help="how many patients (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (%(default)s)")
    parser.add_argument("--size", type=_size, default=(240, 240, 155), help="grid, as 96x96x80")
    parser.add_argument("--cavities", action="store_true", help="after surgery, as BraTS 2024")
    parser.add_argument("--raw", action="store_true", help="with skull, as for bts preprocess")
    parser.add_argument("--preview", action="store_true", help="also draw a contact sheet")


def run(args: argparse.Namespace) -> int:
    from bts_lightning.data.phantom.write import write_phantom

    write_phantom(
        args.out,
        cases=args.cases,
        seed=args.seed,
        size=args.size,
        preview=args.preview,
        cavities=args.cavities,
        raw=args.raw,
    )
    if args.raw:
        print(f"{args.cases} heads in {args.out}; next: bts preprocess OUT --folder {args.out}")
        return 0
    scheme = " --scheme cavity" if args.cavities else ""
    print(f"{args.cases} cases in {args.out}; next: bts prepare {args.out}{scheme}")
    return 0


def _size(text: str) -> tuple[int, int, int]:
    try:
        x, y, z = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size as 96x96x80") from None
    return x, y, z
