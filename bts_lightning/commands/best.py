"""`bts best`: choose among the experiments of a study, on their validation cases."""

import argparse
from pathlib import Path

from bts_lightning.commands.words import names_among, takes_words
from bts_lightning.errors import Parser, UserError
from bts_lightning.study.plan import STUDIES, trained

CHOSEN = ("evaluation.et_minimum", "evaluation.et_small", "evaluation.component_minimum")


def add_arguments(parser: Parser) -> None:
    takes_words(parser, "STUDY|KEY=VALUE", "a folder, or the name of one below studies")
    parser.add_argument("--device", help="cpu or cuda (a GPU if there is one)")


def run(args: argparse.Namespace) -> int:
    """Print the table, the choice, and the commands that use it."""
    names = names_among(args.words)
    if len(names) != 1:
        raise UserError(f"name one study, as studies/NAME; got {' '.join(names) or 'none'}")
    folder = next((f for f in (Path(names[0]), STUDIES / names[0]) if f.is_dir()), None)
    if folder is None:
        raise UserError(f"there is no study {names[0]}; `bts study` makes one")
    words = [word for word in args.words if word not in names]
    for word in words:
        if word.lstrip("-").partition("=")[0] in CHOSEN:
            raise UserError(f"{word}: bts best chooses that itself; leave it out")
    experiments = trained(folder)
    # torch, once nothing is wrong with what was typed.
    from bts_lightning.commands.choose import choose_best

    choose_best(folder, experiments, words, args.allow, args.device)
    return 0
