"""`bts bench`: measure ours and what other people use, on the same files, in turns."""

import argparse
import os
import shlex
import subprocess
import sys
import time
from functools import partial
from importlib import import_module
from pathlib import Path

from bts_lightning.bench.result import FAMILIES, ON_GPU, show
from bts_lightning.errors import Parser, UserError


def add_arguments(parser: Parser) -> None:
    _add_common(parser)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks.md"), help="the page")
    none = "without one: all, one after the other, and the page"
    families = parser.add_subparsers(title="families", metavar="FAMILY", description=none)
    for name, text in {**FAMILIES, "page": "join the results of several machines"}.items():
        families.add_parser(name, help=text, description=text, fill=partial(_fill, name))
    parser.set_defaults(family=None)


def _fill(name: str, parser: Parser) -> None:
    module = import_module(f"bts_lightning.bench.{name}")
    parser.set_defaults(family=name, module=module)
    if name in FAMILIES:
        _add_common(parser)
        parser.add_argument("--device", choices=("cpu", "cuda"), help="cuda if there is one")
    module.add_arguments(parser)


def _add_common(parser: Parser) -> None:
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer rounds, smaller; a first look")
    add("--no-peers", action="store_true", help="ours alone")
    add("--results", type=Path, default=Path("bench"), help="of JSON files (%(default)s)")
    add("--scratch", type=Path, default=Path("scratch/bench"), help="for data (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Measure one family, or all of them and write the page."""
    if args.family is None:
        return _measure_all(args)
    if args.typed[0] != args.family:
        raise UserError(f"options stand behind the family: bts bench {args.family} --help")
    return int(args.module.write(args)) if args.family == "page" else _measure(args)


def _measure(args: argparse.Namespace) -> int:
    from bts_lightning.bench.peers import environment, python_with_peers

    needed = getattr(args.module, "NEEDS_PEERS", False) and not args.no_peers
    if needed and args.device != "cuda" and (python := python_with_peers()) != Path(sys.executable):
        command = [str(python), "-P", "-m", "bts_lightning", "bench", *args.typed]
        return subprocess.run(command, env=environment(), check=False).returncode
    import torch

    # A plan is arithmetic, for a GPU that is elsewhere.
    is_plan = vars(args).get("plan", False)
    name = device_for(args.family, args.device, has_gpu=is_plan or torch.cuda.is_available())
    # Named in the command, so that it repeats the row on a machine that has a GPU too.
    told = [] if args.device else ["--device", name]
    args.device = torch.device(name)
    args.command = " ".join(["bts bench", *map(shlex.quote, [*args.typed, *told])])
    began = time.monotonic()
    result = args.module.measure(args)
    result.seconds = time.monotonic() - began
    show(result)
    if is_plan or vars(args).get("only"):
        # A row by itself must not stand for the whole, nor an estimate for a measurement.
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
    if family == "gpu" and not asked and not has_gpu:
        raise UserError("torch finds no GPU; --device cpu runs the same, small, on the processor")
    return asked or ("cuda" if has_gpu and family in ON_GPU else "cpu")


def _devices() -> list[str]:
    import torch

    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def _measure_all(args: argparse.Namespace) -> int:
    """Run every family in a process of its own, so that none leaves memory to the next."""
    from bts_lightning.bench import page
    from bts_lightning.bench.peers import environment, python_with_peers

    began = time.monotonic()
    python = sys.executable if args.no_peers else str(python_with_peers())
    # As the page will give them: only what differs from what is usual.
    options = [
        f"--{name}={getattr(args, name)}"
        for name in ("results", "scratch")
        if getattr(args, name) != args.parser.get_default(name)
    ]
    options += ["--quick"] * args.quick + ["--no-peers"] * args.no_peers
    turns = [(family, "cpu") for family in FAMILIES if family != "gpu"]
    turns += [("gpu", device) for device in _devices() if device != "cpu"]
    failed = []
    for family, device in turns:
        print(f"— {family} ({device}): {FAMILIES[family]}", flush=True)
        command = [python, "-P", "-m", "bts_lightning", "bench", family, *options]
        command += ["--device", device]
        # By itself it has a folder of its own.
        command += ["--results", str(args.results)] * (family == "gpu")
        if subprocess.run(command, env=environment(), check=False).returncode:
            failed.append(f"{family} ({device})")
    args.results = [args.results]
    code = page.write(args)
    print(f"{time.monotonic() - began:.0f} s in all on {os.cpu_count()} cores")
    if failed:
        raise UserError(f"{', '.join(failed)} did not finish; the page has what there was before")
    return code
