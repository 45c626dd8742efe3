"""Errors that a user can mend: the command line prints them as one line and exits with 2."""

import argparse
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any, NoReturn
from unicodedata import category

# More than these in one line nobody reads.
_SHOWN = 20
# They let a line be read in another order than it stands there.
_TURNS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


class UserError(Exception):
    """Something given cannot work; the text says what was got, what is accepted, what to do."""


class ConfigError(UserError):
    """An experiment, an override or a target is wrong."""


class DataError(UserError):
    """A file or a data set is wrong; the text names it."""


class EveryRankError(UserError):
    """All processes of a training stop for it at the same step; the first one says so."""


class Parser(argparse.ArgumentParser):
    """A parser of a command line that complains in one line, as everything else does.

    Args:
        fill: adds the arguments of a verb, once that verb was named; so no other is imported.
        settings: those of `argparse.ArgumentParser`.
    """

    def __init__(self, *, fill: Callable[["Parser"], None] | None = None, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)
        self._fill = fill

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, after the arguments have been added."""
        if self._fill is not None:
            fill, self._fill = self._fill, None
            fill(self)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        link = " See:" if message.endswith("?") else "; see:"
        raise UserError(f"{message}{link} {self.prog} --help")

    def near(self, word: str) -> str:
        """End an error text with the option that a word resembles, if there is one."""
        known = [option for action in self._actions for option in action.option_strings]
        found = get_close_matches(word.partition("=")[0], known, n=1, cutoff=0.8)
        return "".join(f"; did you mean {option}?" for option in found)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            hint = did_you_mean(str(value), map(str, action.choices))
            raise argparse.ArgumentError(action, f"there is no {value!r}; {hint}")


def visible(text: str) -> str:
    """Show control characters in place of sending them to a terminal; line ends and tabs stay."""
    hidden = ("Cc", "Cs")
    return "".join(
        c if c in "\n\t" or not (category(c) in hidden or c in _TURNS) else repr(c)[1:-1]
        for c in text
    )


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """End an error text with the nearest option, or with all of them if none is near."""
    choices = {option.lower(): option for option in sorted(options)}
    near = get_close_matches(word.lower(), choices, n=1, cutoff=0.6)
    if near:
        return f"did you mean {choices[near[0]]}?"
    if not choices:
        return "there is none to choose from"
    first = list(choices.values())[:_SHOWN]
    return f"choose from {', '.join(first)}{', …' if len(choices) > _SHOWN else ''}"
