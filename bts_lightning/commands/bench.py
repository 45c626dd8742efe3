"""`bts bench`: measure ours and what other people use, on the same files, in turns."""

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from bts_lightning.bench.result import FAMILIES, ON_GPU
from bts_lightning.errors import UserError, did_you_mean

# `page` joins results into a document.
VERBS = (*FAMILIES, "page")


def main(words: Sequence[str]) -> int:
    """Measure one family, or all of them and write the page."""
    if not words or words[0].startswith("-"):
        return _measure_all(words)
    module, args = parse(words)
    return int(module.write(args)) if words[0] == "page" else _measure(module, args, words)


def parse(words: Sequence[str]) -> tuple[Any, argparse.Namespace]:
    """Read a verb and its options; give the verb's module too."""
    verb, *options = words
    if verb not in VERBS:
        raise UserError(f"bts bench has no {verb!r}; {did_you_mean(verb, VERBS)}")
    module = import_module(f"bts_lightning.bench.{verb}")
    return module, _parser(verb, module).parse_args(options)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see: {self.prog} --help")


def _parser(verb: str, module: Any) -> _Parser:
    text = FAMILIES.get(verb, "write the page from the results of one or more machines")
    parser = _Parser(prog=f"bts bench {verb}", description=text, allow_abbrev=False)
    if verb in FAMILIES:
        _add_common(parser)
        parser.add_argument("--device", choices=("cpu", "cuda"), help="cuda if there is one")
    module.add_arguments(parser)
    return parser


def _usage(verb: str) -> str:
    """Tell what a family is and its options."""
    parser = _parser(verb, import_module(f"bts_lightning.bench.{verb}"))
    return f"{verb}: {parser.description}\n  {parser.format_usage().removeprefix('usage: ')}"


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller; a first look")
    parser.add_argument("--no-peers", action="store_true", help="ours alone")
    parser.add_argument(
        "--results", type=Path, default=Path("bench"), help="folder of JSON files (%(default)s)"
    )
    parser.add_argument(
        "--scratch", type=Path, default=Path("scratch/bench"), help="generated data (%(default)s)"
    )


def _measure(module: Any, args: argparse.Namespace, words: Sequence[str]) -> int:
    from bts_lightning.bench.peers import environment, python_with_peers

    needed = getattr(module, "NEEDS_PEERS", False) and not args.no_peers
    if needed and args.device != "cuda" and (python := python_with_peers()) != Path(sys.executable):
        command = [str(python), "-m", "bts_lightning", "bench", *words]
        return subprocess.run(command, env=environment(), check=False).returncode
    import torch

    from bts_lightning.bench.result import show

    name = device_for(words[0], args.device, has_gpu=torch.cuda.is_available())
    # Named in the command, so that it repeats the row on a machine that has a GPU too.
    told = [] if args.device else ["--device", name]
    args.device = torch.device(name)
    args.command = " ".join(["bts bench", *map(shlex.quote, [*words, *told])])
    began = time.monotonic()
    result = module.measure(args)
    result.seconds = time.monotonic() - began
    show(result)
    if vars(args).get("only"):
        # A row by itself must not stand for the whole.
        return 0
    file = result.save(args.results)
    print(f"{result.family}: {result.seconds:.0f} s, {file}; `bts bench page` joins all results")
    return 0


def device_for(family: str, asked: str | None, *, has_gpu: bool) -> str:
    """Choose what to measure: a GPU if there is one and the family does otherwise there."""
    if asked == "cuda" and family not in ON_GPU:
        raise UserError(f"bts bench {family} measures the CPU alone; leave out --device cuda")
    if asked == "cuda" and not has_gpu:
        raise UserError("--device cuda, but torch finds none; leave it out to measure the CPU")
    return asked or ("cuda" if has_gpu and family in ON_GPU else "cpu")


def _devices() -> list[str]:
    import torch

    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def _measure_all(words: Sequence[str]) -> int:
    """Run every family in a process of its own, so that none leaves memory to the next."""
    from bts_lightning.bench.peers import environment, python_with_peers

    parser = _Parser(prog="bts bench", description=__doc__, allow_abbrev=False)
    _add_common(parser)
    if {"-h", "--help"} & set(words):
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.epilog = "\n".join(_usage(verb) for verb in VERBS)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks.md"), help="the page")
    args = parser.parse_args(list(words))
    began = time.monotonic()
    python = sys.executable if args.no_peers else str(python_with_peers())
    # As the page will give them: only what differs from what is usual.
    options = [
        f"--{name}={getattr(args, name)}"
        for name in ("results", "scratch")
        if getattr(args, name) != parser.get_default(name)
    ]
    options += ["--quick"] * args.quick + ["--no-peers"] * args.no_peers
    turns = [(family, device) for device in _devices() for family in FAMILIES]
    failed = []
    for family, device in turns:
        if device == "cuda" and family not in ON_GPU:
            continue
        print(f"— {family} ({device}): {FAMILIES[family]}", flush=True)
        command = [python, "-m", "bts_lightning", "bench", family, *options, "--device", device]
        if subprocess.run(command, env=environment(), check=False).returncode:
            failed.append(f"{family} ({device})")
    code = main(["page", str(args.results), f"--out={args.out}"])
    print(f"{time.monotonic() - began:.0f} s in all on {os.cpu_count()} cores")
    if failed:
        raise UserError(f"{', '.join(failed)} did not finish; the page has what there was before")
    return code
