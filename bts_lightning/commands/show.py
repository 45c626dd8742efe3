"""`bts show`: the experiments, one of them merged, or the arguments of one of its nodes."""

import argparse

from bts_lightning.commands.words import takes_words
from bts_lightning.config.table import show
from bts_lightning.errors import Parser


def add_arguments(parser: Parser) -> None:
    takes_words(parser, "EXPERIMENT|KEY|KEY=VALUE", "as: a2fseg smoke, or: a2fseg net")


def run(args: argparse.Namespace) -> int:
    return show(args.words, allow=args.allow)
