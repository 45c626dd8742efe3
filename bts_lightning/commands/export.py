"""`bts export`: write one window of a run as an ONNX graph for programs without torch."""

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from bts_lightning import runs
from bts_lightning.commands.words import runs_and_overrides, takes_words
from bts_lightning.errors import Parser, UserError
from bts_lightning.modalities import COMPLETE, Subset, parse_subset
from bts_lightning.runs.opening import open_run

# onnxscript is what torch makes graphs with.
NEEDED = ("onnx", "onnxruntime", "onnxscript")


def add_arguments(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN|EXPERIMENT", help="of an experiment: its newest run")
    parser.add_argument("out", type=Path, metavar="OUT.onnx", help="the file to write")
    takes_words(parser, "KEY=VALUE", "overrides, as evaluation.window=96")
    parser.add_argument("--subset", help="images that the graph takes, as t2+flair (all four)")
    parser.add_argument("--checkpoint", type=Path, help="another one than the best")


def run(args: argparse.Namespace) -> int:
    folders, overrides = runs_and_overrides([args.run, *args.words])
    if len(folders) > 1:
        raise UserError(f"{args.run} is an ensemble; export each of its {len(folders)} runs alone")
    try:
        subset = COMPLETE if args.subset is None else parse_subset(args.subset)
    except ValueError as error:
        raise UserError(f"--subset: {error}") from error
    export(
        folders[0],
        args.out,
        subset,
        words=overrides,
        allow=args.allow,
        checkpoint=args.checkpoint,
    )
    return 0


def export(
    run: Path,
    out: Path,
    subset: Subset = COMPLETE,
    *,
    words: Sequence[str] = (),
    allow: Sequence[str] = (),
    checkpoint: Path | None = None,
) -> Path:
    """Write the graph of one window, compared with the network, and give the file.

    Args:
        run: the run whose network is used.
        out: a file that ends in `.onnx`.
        subset: the images that the graph takes.
        words: overrides, as `evaluation.window=96`.
        allow: packages that `_target_` may name beyond ours.
        checkpoint: another checkpoint than the best.
    """
    if out.suffix != ".onnx" or out.is_dir():
        raise UserError(f"{out}: the graph is a file that ends in .onnx, as OUT.onnx")
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise UserError(
            f"bts export needs {', '.join(missing)}; install the extra: "
            "pip install 'bts_lightning[onnx]'"
        )
    _, nodes = open_run(run, words, allow)
    checkpoint = checkpoint or runs.best_checkpoint(run)
    # torch is imported once nothing is wrong with what was typed.
    from bts_lightning.commands.graph import write_graph

    return write_graph(run, nodes, checkpoint, subset, out)
