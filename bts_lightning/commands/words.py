"""What verbs share: the words RUN|EXPERIMENT|KEY=VALUE, and options that several take."""

import os
from collections.abc import Sequence
from pathlib import Path

from bts_lightning.config.merge import is_override
from bts_lightning.config.targets import HOST
from bts_lightning.errors import Parser, UserError
from bts_lightning.runs.container import SUFFIX
from bts_lightning.runs.folder import find_run, find_runs

RUN_WORDS = "of an experiment: its newest run; several segment together"


def takes_words(parser: Parser, metavar: str, text: str) -> None:
    """Let a verb take words; those behind options, and `--net.width=8`, are put to them."""
    # Without a default argparse would say that they are required.
    parser.add_argument("words", nargs="*", default=[], metavar=metavar, help=text)
    parser.add_argument(
        "--allow", action="append", default=[], metavar="PACKAGE", help="trust its classes too"
    )
    # Among the packages, so that it goes wherever they go: to every training of a study or sweep.
    parser.add_argument(
        "--allow-host",
        dest="allow",
        action="append",
        type=lambda host: f"{HOST}{host}",
        metavar="HOST",
        help="let the experiment name this server of a logger",
    )


def runs_a_network(parser: Parser) -> None:
    """Let a verb choose weights and device."""
    parser.add_argument("--checkpoint", type=Path, help="another one than the best")
    parser.add_argument("--device", help="cpu or cuda (a GPU if there is one)")


def check_overrides(rest: list[str], parser: Parser) -> list[str]:
    """Let `--net.width=8` pass, as Weights & Biases writes it, but no unknown option."""
    for word in rest:
        if word.startswith("-") and not is_override(word):
            raise UserError(
                f"unknown option {word}; overrides are written key=value or --key=value"
                f"{parser.near(word)}"
            )
    return rest


def names_among(words: Sequence[str]) -> list[str]:
    """Give the words that are no overrides: experiments and runs."""
    return [word for word in words if not is_override(word)]


def runs_and_overrides(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Take the runs, or the newest runs of experiments, that stand among overrides."""
    names = names_among(words)
    if not names:
        raise UserError("name a run, as runs/a2fseg/20260131-120000, or an experiment; got none")
    found = [find_runs(name) if is_place(name) else [find_run(None, name)] for name in names]
    return [run for runs in found for run in runs], [word for word in words if word not in names]


def is_place(word: str) -> bool:
    """Tell a folder, or a package, from the name of an experiment."""
    return Path(word).exists() or os.sep in word or word.endswith(SUFFIX)
