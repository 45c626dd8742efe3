"""Standard streams that take whatever is printed: closed ones, and those of a plain locale."""

import codecs
import os
import sys

_PLAIN = {
    **{"●": "*", "○": "o", "·": ".", "×": "x", "…": "...", "–": "-", "—": "-", "−": "-"},
    **{"→": "->", "±": "+/-", "≤": "<=", "≥": ">=", "Δ": "d", "³": "^3", "²": "^2", "°": "deg"},
    **{"“": '"', "”": '"', "‘": "'", "’": "'", "µ": "u", "✓": "ok", "✗": "no"},
}


def open_streams() -> None:
    """Put nothing in the place of what is closed, and let every stream write what it can."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is taken; else the next file would get what is printed.
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="plain")


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Write in ASCII what a stream cannot take."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    left = error.object[error.start : error.end]
    return "".join(_PLAIN.get(letter, "?") for letter in left), error.end
