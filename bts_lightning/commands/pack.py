"""`bts pack`: one file of a trained run, or of an ensemble, to hand on."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from bts_lightning.commands.words import names_among, runs_and_overrides, takes_words
from bts_lightning.errors import Parser, UserError
from bts_lightning.files import sha256
from bts_lightning.runs.container import SUFFIX
from bts_lightning.runs.opening import open_runs

NONE = "none"


def add_arguments(parser: Parser) -> None:
    takes_words(parser, "RUN|EXPERIMENT|OUT.bts|KEY=VALUE", "the file last; several runs: averaged")
    parser.add_argument("--checkpoint", type=Path, help="another one than the best")
    text = f"whose scores go along: of RUN/evaluation, a folder, {NONE} (test, if it is there)"
    parser.add_argument("--evaluation", metavar="NAME", help=text)
    parser.add_argument("--title", help="of the model card (from the network)")
    text = "of the weights, by the hub's name: cc-by-4.0, apache-2.0, other (%(default)s)"
    parser.add_argument("--license", default="unknown", metavar="NAME", help=text)
    parser.add_argument("--data", metavar="NAME", help="what it was trained on, as 'BraTS 2021'")
    parser.add_argument("--data-license", metavar="TEXT", help="what its terms of use ask for")


def run(args: argparse.Namespace) -> int:
    names = names_among(args.words)
    if not names or not names[-1].endswith(SUFFIX):
        raise UserError(
            f"name the file to write last, as in: bts pack runs/a2fseg/DATE a2fseg{SUFFIX}"
        )
    # One of them may be a package that is packed again.
    place = len(args.words) - 1 - args.words[::-1].index(names[-1])
    folders, overrides = runs_and_overrides([*args.words[:place], *args.words[place + 1 :]])
    said = {name: getattr(args, name) for name in ("title", "license", "data", "data_license")}
    pack(
        folders,
        Path(names[-1]),
        words=overrides,
        allow=args.allow,
        checkpoint=args.checkpoint,
        evaluation=args.evaluation,
        said={name: text for name, text in said.items() if text is not None},
    )
    return 0


def pack(
    run: Path | Sequence[Path],
    out: Path,
    *,
    words: Sequence[str] = (),
    allow: Sequence[str] = (),
    checkpoint: Path | None = None,
    evaluation: str | None = None,
    said: dict[str, str] | None = None,
) -> Path:
    """Write a package and give its place.

    Args:
        run: the run folder, or several whose probabilities are averaged.
        out: the file, which ends in `.bts`.
        words: overrides, which are packed: `evaluation.mirror=true`.
        allow: packages that `_target_` may name beyond ours; whoever opens it must allow them too.
        checkpoint: another one than the best, of a single run.
        evaluation: whose scores go along.
        said: `title`, `license`, `data` and `data_license` for the model card.
    """
    if out.suffix != SUFFIX or out.is_dir():
        raise UserError(f"{out}: a package is a file that ends in {SUFFIX}")
    opened = open_runs(run, words, allow, checkpoint)
    scored = _evaluation([one.run for one in opened], evaluation)
    # Lightning is imported once nothing is wrong with what was typed.
    from bts_lightning.report.screen import Screen
    from bts_lightning.runs.packing import Said, pack

    pack(opened, out, scored, Said(**(said or {})))
    console = Screen()
    if scored is None:
        console.print(
            "no evaluation goes along, so its card says nothing of how good it is; "
            "see --evaluation",
            style="yellow",
        )
    console.print(
        f"{out}  {out.stat().st_size / 1e6:.1f} MB, sha256 {sha256(out)}\n"
        f"use     bts predict {out} --flair FILE --out seg.nii.gz"
    )
    return out


def _evaluation(folders: Sequence[Path], name: str | None) -> Path | None:
    """Find the evaluation whose scores go along, if any."""
    if name == NONE:
        return None
    below = folders[0] / "evaluation" / (name or "test")
    places = [below] if len(folders) == 1 else []
    places += [Path(name)] if name else []
    found = next((place for place in places if (place / "cases.csv").is_file()), None)
    if found is None and name is not None:
        raise UserError(
            f"--evaluation {name}: no cases.csv in {' or in '.join(map(str, places))}; "
            f"`bts evaluate` makes one, and {NONE} packs without"
        )
    return found
