"""`bts import`: make a run of an official checkpoint, with the official protocol."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from bts_lightning import config as configuration
from bts_lightning import runs
from bts_lightning.commands.words import names_among, takes_words
from bts_lightning.errors import Parser, UserError
from bts_lightning.networks.official.table import read_table, tables
from bts_lightning.report.screen import Screen

console = Screen()


def add_arguments(parser: Parser) -> None:
    takes_words(
        parser, "NETWORK FILE|KEY=VALUE", "as: rfnet model_last.pth; without any, all networks"
    )
    parser.add_argument("--out", type=Path, help="folder of the run (runs/NETWORK/DATE)")


def run(args: argparse.Namespace) -> int:
    names = names_among(args.words)
    if not names:
        _show()
        return 0
    if len(names) != 2:
        raise UserError(
            f"give a network and a file, as: bts import rfnet model.pth; got {' '.join(names)}"
        )
    overrides = [word for word in args.words if word not in names]
    import_checkpoint(names[0], Path(names[1]), words=overrides, out=args.out, allow=args.allow)
    return 0


def import_checkpoint(
    network: str,
    file: Path,
    *,
    words: Sequence[str] = (),
    out: Path | None = None,
    allow: Sequence[str] = (),
) -> Path:
    """Make a run of an official checkpoint and give its folder.

    Args:
        network: a name that `bts import` lists.
        file: the checkpoint as its authors saved it.
        words: overrides, as `data.root=DIR` or `data.split=split.json`, what it was trained on.
        out: the folder of the run; one by the date below `runs` by default.
        allow: packages that `_target_` may name beyond ours.
    """
    table = read_table(network)
    config = configuration.load([*table.train, *words], allow=allow)
    configuration.check(config, supplied=configuration.SUPPLIED)
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} is there already; name a new folder")
    # torch is imported once nothing is wrong with what was typed.
    from bts_lightning.commands.convert import convert

    told = os.environ.get(runs.RUN_VARIABLE)
    try:
        return convert(table, file, config, out)
    finally:
        if told is None:
            os.environ.pop(runs.RUN_VARIABLE, None)


def _show() -> None:
    """List what can be imported, and who has weights."""
    for name in tables():
        table = read_table(name)
        console.print(f"{name:18}{table.network}\n{'':18}{table.source}")
        if table.weights:
            console.print(f"{'':18}{table.weights}", style="dim")
