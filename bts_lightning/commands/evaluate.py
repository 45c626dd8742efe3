"""`bts evaluate`: score every case of a split in all subsets, one pass, and write the report."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from bts_lightning import runs
from bts_lightning.commands.words import RUN_WORDS, runs_a_network, runs_and_overrides, takes_words
from bts_lightning.data.splits import PARTS, Part
from bts_lightning.errors import Parser, UserError
from bts_lightning.files import checksum, sha256
from bts_lightning.runs.opening import OpenRun, open_runs

ENSEMBLES = Path("ensembles")


def add_arguments(parser: Parser) -> None:
    takes_words(parser, "RUN|EXPERIMENT|KEY=VALUE", RUN_WORDS)
    parser.add_argument("--name", help="folder below RUN/evaluation (the part's name)")
    text = "folder of several runs, below ensembles (from their names)"
    parser.add_argument("--ensemble", metavar="NAME", help=text)
    text = "of several runs: score cases that one of them was trained on too"
    parser.add_argument("--seen", action="store_true", help=text)
    parser.add_argument("--part", default="test", choices=PARTS, help="cases (%(default)s)")
    parser.add_argument("--predictions", action="store_true", help="also write all label maps")
    parser.add_argument(
        "--fit-temperature",
        action="store_true",
        help="in place of scoring, fit the temperature of the logits (with --part val)",
    )
    runs_a_network(parser)


def run(args: argparse.Namespace) -> int:
    folders, overrides = runs_and_overrides(args.words)
    if args.fit_temperature:
        if args.name is not None or args.predictions:
            raise UserError("--fit-temperature scores nothing: leave --name and --predictions out")
        if len(folders) > 1:
            raise UserError("--fit-temperature: each run has a temperature; give one run at a time")
        fit_temperature(
            folders[0],
            words=overrides,
            allow=args.allow,
            part=args.part,
            checkpoint=args.checkpoint,
            device=args.device,
        )
        return 0
    evaluate(
        folders,
        words=overrides,
        allow=args.allow,
        name=args.name,
        part=args.part,
        checkpoint=args.checkpoint,
        device=args.device,
        predictions=args.predictions,
        ensemble=args.ensemble,
        seen=args.seen,
    )
    return 0


def evaluate(
    run: Path | Sequence[Path],
    *,
    words: Sequence[str] = (),
    allow: Sequence[str] = (),
    name: str | None = None,
    part: Part = "test",
    checkpoint: Path | None = None,
    device: str | None = None,
    predictions: bool = False,
    ensemble: str | None = None,
    seen: bool = False,
) -> Path:
    """Evaluate a run on one part of its split and give the folder with table and report.

    Of several runs the probabilities are averaged. Their evaluation lies in a folder of its own,
    `ensembles/NAME/evaluation/PART`, and is made on the split of the first.

    An interrupted evaluation goes on where it stopped; one with another protocol or checkpoint
    must have another name, because rows of the two must never stand in one table.

    Args:
        run: the run folder, or several.
        words: overrides, as `evaluation.overlap=0.25` or `data.root=OTHER`.
        allow: packages that `_target_` may name beyond ours.
        name: the folder below `RUN/evaluation`; the part of the split by default.
        part: which part of the split.
        checkpoint: another checkpoint than the best.
        device: `cpu`, `cuda` or `cuda:1`; what the configuration says by default.
        predictions: also write the label maps of all subsets as NIfTI.
        ensemble: the folder below `ensembles`, of several runs; by default named after them.
        seen: of several runs, also score cases that one of them was trained on, and say so.
    """
    folders = [run] if isinstance(run, Path) else list(run)
    home = folders[0] if len(folders) == 1 else ENSEMBLES
    for option, given, place in (
        ("--name", name, home / "evaluation"),
        ("--ensemble", ensemble, ENSEMBLES),
    ):
        if given is not None and not _is_name(given):
            raise UserError(f"{option} {given!r}: give the name of a folder in {place}")
    if len(folders) == 1 and (ensemble is not None or seen):
        option = "--seen" if ensemble is None else "--ensemble"
        raise UserError(f"{option} is for several runs; {home} is one")
    for folder in folders:
        runs.refuse_links(folder, "evaluation", "logs")
        runs.refuse_strangers(folder)
    opened = open_runs(folders, words, allow, checkpoint)
    if len(folders) > 1:
        home = ENSEMBLES / (ensemble or _called(opened))
        runs.refuse_links(home, "evaluation", "logs")
    # Lightning is imported once nothing is wrong with what was typed.
    from bts_lightning.commands.score import score

    folder = home / "evaluation" / (name or part)
    score(folder, opened, part, device, predictions=predictions, seen=seen)
    return folder


def _is_name(text: str) -> bool:
    return Path(text).name == text and text != ".." and text.isprintable()


def _called(opened: Sequence[OpenRun]) -> str:
    """Name an ensemble after its experiments and weights, so that the same command goes on."""
    names = "+".join(dict.fromkeys(one.experiment for one in opened))
    return f"{names[:100]}-{checksum([sha256(one.checkpoint) for one in opened])[:8]}"


def fit_temperature(
    run: Path,
    *,
    words: Sequence[str] = (),
    allow: Sequence[str] = (),
    part: Part = "val",
    checkpoint: Path | None = None,
    device: str | None = None,
) -> Path:
    """Fit one temperature to the validation cases of a run, and give the file that keeps it.

    `evaluation.temperature=fitted` applies it. The arguments are those of `evaluate`.
    """
    if part != "val":
        raise UserError(
            f"--fit-temperature --part {part}: what is fitted must see neither test nor training "
            "cases; give --part val"
        )
    runs.refuse_links(run, "temperature.json")
    runs.refuse_strangers(run)
    (opened,) = open_runs(run, words, allow, checkpoint)
    from bts_lightning.commands import temperature

    return temperature.fit_temperature(opened, part, device)
