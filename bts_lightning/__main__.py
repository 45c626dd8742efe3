"""The command line `bts`: what it can do, in which words; a verb's code is imported when used."""

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bts_lightning.errors import Parser, UserError, did_you_mean
from bts_lightning.modalities import MODALITIES

# These verbs read the rest of the line themselves, in `bts_lightning.commands.VERB.main`.
FORWARDED = {
    "demo": "phantom, training, all 15 subsets and the report, in minutes",
    "sweep": "search hyper-parameters, with Weights & Biases or without an account",
    "agent": "join a running sweep from another machine",
    "study": "train and evaluate a grid of experiments, seeds and folds",
    "bench": "measure speed beside what other people use",
    "report": "write the report of an evaluation again",
    "distill": "train a teacher and its students",
}

# What nobody but the user can mend.
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; what the user can mend is one line, without a traceback."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(words)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
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
        if error.errno not in _OF_THE_DISK:
            raise
        print(f"error: {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        return 2


def _run(words: list[str]) -> int:
    parser, verbs = _parser()
    if not words:
        parser.print_help()
        return 2
    if words[0] in FORWARDED:
        code: int = import_module(f"bts_lightning.commands.{words[0]}").main(words[1:])
        return code
    if not words[0].startswith("-") and words[0] not in verbs:
        raise UserError(f"unknown verb {words[0]!r}; {did_you_mean(words[0], verbs)}")
    args, rest = parser.parse_known_args(words)
    if "words" in args:
        args.words += _as_overrides(rest, verbs[words[0]])
    elif rest:
        verbs.get(words[0], parser).error(f"there is no option {' '.join(rest)}")
    return int(args.handler(args))


def _parser() -> tuple[Parser, dict[str, Parser]]:
    parser = Parser(prog="bts", description="Brain tumour segmentation with missing modalities.")
    parser.add_argument("--version", action="version", version=f"bts {version('bts_lightning')}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", prog="bts")

    def add(name: str, handler: Callable[[argparse.Namespace], int], text: str, **more: Any) -> Any:
        verb = verbs.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", **more
        )
        verb.set_defaults(handler=handler)
        return verb

    verb = add("phantom", _phantom, "write a generated data set in the layout of BraTS 2021")
    verb.add_argument("out", type=Path, help="folder to write to")
    verb.add_argument("--cases", type=int, default=40, help="how many patients (%(default)s)")
    verb.add_argument("--seed", type=int, default=0, help="same seed, same bytes (%(default)s)")
    verb.add_argument("--size", type=_size, default=(240, 240, 155), help="grid, as 96x96x80")
    verb.add_argument("--preview", action="store_true", help="also draw a contact sheet")

    verb = add("prepare", _prepare, "check a data set, cache it, and report every fault")
    verb.add_argument("root", type=Path, help="the data set, in any layout that BraTS had")
    verb.add_argument("--cache", type=Path, help="where to cache (ROOT/.bts_cache)")
    verb.add_argument("--skip-broken", action="store_true", help="go on with the good cases")
    verb.add_argument("--workers", type=int, help="processes (one a core)")
    verb.add_argument(
        "--normalisation", default="zscore", help="zscore, legacy_rfnet or legacy_nnunet"
    )
    verb.add_argument("--crop", default="brain", help="brain or none")

    verb = add("show", _show, "print an experiment, or the arguments of one of its nodes")
    _takes_words(verb, "EXPERIMENT|KEY|KEY=VALUE", "as: a2fseg smoke, or: a2fseg net")

    verb = add("train", _train, "train an experiment, or go on with a run", add_help=False)
    _takes_words(verb, "EXPERIMENT|RUN|KEY=VALUE", "as: a2fseg smoke net.width=8")
    verb.add_argument("-h", "--help", action="store_true", help="with an experiment: list its keys")
    verb.set_defaults(parser=verb)

    verb = add("evaluate", _evaluate, "score a run in all 15 subsets and write the report")
    _takes_words(verb, "RUN|EXPERIMENT|KEY=VALUE", "of an experiment: its newest run")
    verb.add_argument("--name", help="folder below RUN/evaluation (the part's name)")
    verb.add_argument("--part", default="test", choices=("test", "val", "train"))
    verb.add_argument("--predictions", action="store_true", help="also write all label maps")
    _runs_a_network(verb)

    verb = add("predict", _predict, "segment one patient, or a folder of cases")
    _takes_words(verb, "RUN|EXPERIMENT|KEY=VALUE", "of an experiment: its newest run")
    for modality in MODALITIES:
        verb.add_argument(f"--{modality}", type=Path, metavar="FILE", help="if it was acquired")
    verb.add_argument("--folder", type=Path, help="a data set instead of one patient")
    verb.add_argument("--out", type=Path, required=True, help="file (folder with --folder)")
    verb.add_argument("--probabilities", action="store_true", help="also write probabilities")
    _runs_a_network(verb)

    verb = add("compare", _compare, "compare evaluated runs, paired by case and subset")
    verb.add_argument("runs", nargs="+", metavar="RUN|EXPERIMENT", help="the first is the baseline")
    verb.add_argument("--out", type=Path, help="folder for table and figure")
    verb.add_argument(
        "--metric", action="append", metavar="NAME", help="a column of cases.csv; may be repeated"
    )

    for name, text in FORWARDED.items():
        verbs.add_parser(name, help=text)
    return parser, dict(verbs.choices)


def _takes_words(verb: argparse.ArgumentParser, metavar: str, text: str) -> None:
    verb.add_argument("words", nargs="*", metavar=metavar, help=text)
    verb.add_argument(
        "--allow", action="append", default=[], metavar="PACKAGE", help="trust its classes too"
    )


def _runs_a_network(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--checkpoint", type=Path, help="another one than the best")
    verb.add_argument("--device", help="cpu or cuda (a GPU if there is one)")


def _as_overrides(rest: list[str], verb: Parser) -> list[str]:
    """Let `--net.width=8` pass, as Weights & Biases writes it."""
    for word in rest:
        if word.startswith("-") and "=" not in word:
            known = [option for action in verb._actions for option in action.option_strings]
            near = get_close_matches(word, known, n=1, cutoff=0.8)
            raise UserError(
                f"unknown option {word}; overrides are written key=value or --key=value"
                + "".join(f"; did you mean {option}?" for option in near)
            )
    return rest


def _size(text: str) -> tuple[int, int, int]:
    try:
        x, y, z = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size as 96x96x80") from None
    return x, y, z


def _run_and_overrides(words: list[str]) -> tuple[Path, list[str]]:
    """Take the run, or the newest run of the experiment, that stands among overrides."""
    from bts_lightning.runs.folder import find_run

    names = [word for word in words if "=" not in word]
    if len(names) != 1:
        given = " ".join(names) or "none"
        raise UserError(f"name one run, as runs/a2fseg/20260131-120000, or experiment; got {given}")
    run = find_run(names[0]) if _is_place(names[0]) else find_run(None, names[0])
    return run, [word for word in words if word != names[0]]


def _is_place(word: str) -> bool:
    """Tell a folder from the name of an experiment."""
    return Path(word).exists() or os.sep in word


def _phantom(args: argparse.Namespace) -> int:
    from bts_lightning.data.phantom.write import write_phantom

    write_phantom(args.out, cases=args.cases, seed=args.seed, size=args.size, preview=args.preview)
    print(f"{args.cases} cases in {args.out}; next: bts prepare {args.out}")
    return 0


def _prepare(args: argparse.Namespace) -> int:
    from bts_lightning.commands.prepare import prepare_command

    return prepare_command(
        args.root,
        cache=args.cache,
        skip_broken=args.skip_broken,
        workers=args.workers,
        normalisation=args.normalisation,
        crop=args.crop,
    )


def _show(args: argparse.Namespace) -> int:
    from bts_lightning.config.table import show

    return show(args.words, allow=args.allow)


def _train(args: argparse.Namespace) -> int:
    if args.help:
        from bts_lightning.config.table import print_experiments, print_keys

        if args.words:
            print_keys(args.words, allow=args.allow)
        else:
            args.parser.print_help()
            print("\nexperiments:")
            print_experiments()
        return 0
    from bts_lightning.commands.train import train

    return train(args.words, allow=args.allow)


def _evaluate(args: argparse.Namespace) -> int:
    run, overrides = _run_and_overrides(args.words)
    from bts_lightning.commands.evaluate import evaluate

    evaluate(
        run,
        words=overrides,
        allow=args.allow,
        name=args.name,
        part=args.part,
        checkpoint=args.checkpoint,
        device=args.device,
        predictions=args.predictions,
    )
    return 0


def _predict(args: argparse.Namespace) -> int:
    run, overrides = _run_and_overrides(args.words)
    from bts_lightning.commands.predict import predict
    from bts_lightning.config.targets import allow

    allow(args.allow)
    given = {modality: getattr(args, modality) for modality in MODALITIES}
    predict(
        run,
        args.out,
        images={modality: file for modality, file in given.items() if file is not None},
        folder=args.folder,
        words=overrides,
        checkpoint=args.checkpoint,
        with_probabilities=args.probabilities,
        device=args.device,
    )
    return 0


def _compare(args: argparse.Namespace) -> int:
    from bts_lightning.commands.compare import compare
    from bts_lightning.runs.folder import find_run

    places = [Path(word) if _is_place(word) else find_run(None, word) for word in args.runs]
    return compare(places, out=args.out, metrics=args.metric)


if __name__ == "__main__":
    raise SystemExit(main())
