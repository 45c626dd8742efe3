"""The command line `bts`: what it can do, in which words; a verb's code is imported when used."""

import os
import sys

if __name__ == "__main__" and not sys.flags.safe_path and sys.path[0] == os.getcwd():
    # `python -m` looks into the current folder first, where a stranger's torch.py may lie.
    _home = __file__.removesuffix("/bts_lightning/__main__.py")
    del sys.path[0]
    if sys.path.count(_home) == 0 and _home == os.getcwd():
        # A checkout that is not installed; the processes of a training must find it too.
        sys.path.append(_home)
        _given = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = f"{_home}{os.pathsep}{_given}" if _given else _home

import argparse
import errno
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from keyword import iskeyword

from bts_lightning.commands.streams import open_streams
from bts_lightning.errors import Parser, UserError, did_you_mean, visible

# Each is a module of `bts_lightning.commands` with `add_arguments(parser)` and `run(args)`.
VERBS = {
    "phantom": "write a generated data set in the layout of BraTS 2021",
    "prepare": "check a data set, cache it, and report every fault",
    "preprocess": "bring patients from the scanner to the grid and the names of BraTS",
    "show": "print an experiment, or the arguments of one of its nodes",
    "train": "train an experiment, or go on with a run",
    "evaluate": "score a run in all 15 subsets and write the report",
    "predict": "segment one patient, or a folder of cases",
    "view": "look at a patient in the browser, and switch modalities off and on",
    "pack": "write one file of a run or an ensemble, to hand on",
    "unpack": "make a folder of a packed file, or ask it for a case",
    "challenge": "segment /input into /output, as the container of a challenge does",
    "export": "write one window of a run as an ONNX graph, for programs without torch",
    "compare": "compare evaluated runs, paired by case and subset",
    "demo": "phantom, training, all 15 subsets and the report, in minutes",
    "sweep": "search hyper-parameters, with Weights & Biases or without an account",
    "agent": "join a running sweep from another machine",
    "study": "train and evaluate a grid of experiments, seeds and folds",
    "best": "choose among the experiments of a study, and their pairs",
    "record": "write what a study has reproduced of a paper, to send it",
    "import": "make a run of an official checkpoint, to evaluate or predict with",
    "bench": "measure speed beside what other people use",
    "published": "print what papers and repositories printed, by data set",
    "report": "write the report of an evaluation again",
    "distill": "train a teacher and its students",
}

# What nobody but the user can mend.
_OF_THE_DISK = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG),
    # A file where a folder is due, or the other way round.
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP),
)


class _Help(argparse.HelpFormatter):
    """Leave room for the longest verb; argparse measures verbs before it indents them."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog)
        self._action_max_length = 4 + max(map(len, VERBS))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; what the user can mend is one line, without a traceback."""
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        open_streams()
        # Threads of OpenMP that wait would spin, which starves whatever else runs here; torch reads
        # this once, and the processes of other devices inherit it.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # The processes of other devices and of readers; a sweep may start programs of somebody else.
    if argv is None and words[:1] not in (["sweep"], ["agent"]):
        os.environ["PYTHONSAFEPATH"] = "1"
    try:
        if nul := next((word for word in words if "\0" in word), None):
            raise UserError(f"{nul}: no name holds a NUL")
        code = _run(words)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"error: {visible(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except SystemExit as stop:
        # Lightning leaves at SIGTERM with status 0, as if all were done.
        if type(stop).__name__ != "SIGTERMException":
            raise
        print("error: stopped by SIGTERM", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # `bts show a2fseg | head` closed the pipe; without this the interpreter complains at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        from bts_lightning.files import NotAFileError

        if error.errno not in _OF_THE_DISK and not isinstance(error, NotAFileError):
            raise
        name = visible(str(error.filename or "a file"))
        print(f"error: {name}: {error.strerror}", file=sys.stderr)
        return 2


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read a line: `verb` is the module that runs it, `typed` the words behind the verb."""
    parser = Parser(
        prog="bts",
        description="Brain tumour segmentation with missing modalities.",
        formatter_class=_Help,
    )
    parser.add_argument("--version", action="store_true", help="of bts and all that it stands on")
    parser.set_defaults(verb=None, parser=parser)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", prog="bts")
    for name, text in VERBS.items():
        verbs.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            conflict_handler="resolve",  # the help of `train` is another one behind an experiment
            fill=partial(_fill, name),
        )
    if words and not words[0].startswith("-") and words[0] not in VERBS:
        raise UserError(f"unknown verb {words[0]!r}; {did_you_mean(words[0], VERBS)}")
    args, rest = parser.parse_known_args(words)
    if rest and "words" not in args:
        what = "there is no option" if rest[0].startswith("-") else "nobody asked for"
        args.parser.error(f"{what} {rest[0]}{args.parser.near(rest[0])}")
    if rest:
        from bts_lightning.commands.words import check_overrides

        args.words += check_overrides(rest, args.parser)
    args.typed = list(words[1:])
    return args


def _fill(name: str, parser: Parser) -> None:
    # `import` is no name that Python takes.
    verb = import_module(f"bts_lightning.commands.{name}{'_' * iskeyword(name)}")
    parser.set_defaults(verb=verb, parser=parser)
    verb.add_arguments(parser)


def _run(words: list[str]) -> int:
    args = parse(words)
    if args.verb:
        return int(args.verb.run(args))
    if args.version:
        return _print_versions()
    args.parser.print_help()
    return 2


def _print_versions() -> int:
    """Print what provenance.json says of a run; a report of a fault begins with it."""
    from bts_lightning.runs.facts import commit, machine, versions

    found = versions()
    print(f"bts {found.pop('bts_lightning')}, commit {commit() or 'unknown'}", flush=True)
    for name, value in (found | machine()).items():
        print(f"{name:13}{', '.join(value) if isinstance(value, list) else value}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
