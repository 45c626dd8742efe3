"""`bts evaluate`: score every case of a split in all subsets, one pass, and write the report."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from bts_lightning import runs
from bts_lightning.commands.words import run_and_overrides, runs_a_network, takes_words
from bts_lightning.data.splits import PARTS, Part
from bts_lightning.errors import Parser, UserError
from bts_lightning.runs.opening import open_run


def add_arguments(parser: Parser) -> None:
    takes_words(parser, "RUN|EXPERIMENT|KEY=VALUE", "of an experiment: its newest run")
    parser.add_argument("--name", help="folder below RUN/evaluation (the part's name)")
    parser.add_argument("--part", default="test", choices=PARTS, help="cases (%(default)s)")
    parser.add_argument("--predictions", action="store_true", help="also write all label maps")
    parser.add_argument(
        "--fit-temperature",
        action="store_true",
        help="in place of scoring, fit the temperature of the logits (with --part val)",
    )
    runs_a_network(parser)


def run(args: argparse.Namespace) -> int:
    folder, overrides = run_and_overrides(args.words)
    if args.fit_temperature:
        if args.name is not None or args.predictions:
            raise UserError("--fit-temperature scores nothing: leave --name and --predictions out")
        fit_temperature(
            folder,
            words=overrides,
            allow=args.allow,
            part=args.part,
            checkpoint=args.checkpoint,
            device=args.device,
        )
        return 0
    evaluate(
        folder,
        words=overrides,
        allow=args.allow,
        name=args.name,
        part=args.part,
        checkpoint=args.checkpoint,
        device=args.device,
        predictions=args.predictions,
    )
    return 0


def evaluate(
    run: Path,
    *,
    words: Sequence[str] = (),
    allow: Sequence[str] = (),
    name: str | None = None,
    part: Part = "test",
    checkpoint: Path | None = None,
    device: str | None = None,
    predictions: bool = False,
) -> Path:
    """Evaluate a run on one part of its split and give the folder with table and report.

    An interrupted evaluation goes on where it stopped; one with another protocol or checkpoint
    must have another name, because rows of the two must never stand in one table.

    Args:
        run: the run folder.
        words: overrides, as `evaluation.overlap=0.25` or `data.root=OTHER`.
        allow: packages that `_target_` may name beyond ours.
        name: the folder below `RUN/evaluation`; the part of the split by default.
        part: which part of the split.
        checkpoint: another checkpoint than the best.
        device: `cpu`, `cuda` or `cuda:1`; what the configuration says by default.
        predictions: also write the label maps of all subsets as NIfTI.
    """
    if name is not None and (Path(name).name != name or name == ".." or not name.isprintable()):
        raise UserError(f"--name {name!r}: give the name of a folder in {run / 'evaluation'}")
    runs.refuse_links(run, "evaluation", "logs")
    runs.refuse_strangers(run)
    _, nodes = open_run(run, words, allow)
    checkpoint = checkpoint or runs.best_checkpoint(run)
    # Lightning is imported once nothing is wrong with what was typed.
    from bts_lightning.commands.score import score

    folder = run / "evaluation" / (name or part)
    score(run, folder, nodes, checkpoint, part, device, predictions=predictions)
    return folder


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
    _, nodes = open_run(run, words, allow)
    checkpoint = checkpoint or runs.best_checkpoint(run)
    from bts_lightning.commands import temperature

    return temperature.fit_temperature(run, nodes, checkpoint, part, device)
