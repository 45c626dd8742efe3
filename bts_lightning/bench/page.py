"""Write docs/benchmarks.md from the results of one or more machines."""

import argparse
from pathlib import Path

from bts_lightning.bench.result import (
    FAMILIES,
    GOALS,
    ON_GPU,
    Result,
    markdown,
    read_all,
    shown,
)
from bts_lightning.errors import UserError
from bts_lightning.files import write_whole

INTRODUCTION = """# Benchmarks

Written by `make bench` (`bts bench`), which makes an environment of its own for the peers, runs
ours and theirs on the same files in turns, and takes medians; ± is half the distance from the
slowest round to the fastest. The peers are pinned in `bts_lightning/bench/peers.txt`. Ratios
matter; absolute times drift with the load of the machine, which is given. Under a table stands the
command that repeats one row: put the row's own words for those in braces. Single families, here
or on another machine:

```bash
bts bench loader           # also: metrics subsets step scale; --help lists the options of each
bts bench gpu              # eight minutes on a card; --plan says before what each row costs
bts bench page bench gpu   # joins the results of folders into this page
```

A machine with torch, Lightning, torchmetrics, NumPy, SciPy, pandas, numba, rich, Pillow, OmegaConf
and NiBabel can measure the GPU rows from a checkout: `python -m bts_lightning bench gpu`.

A promise of the loader is against the fastest of all peers, each at its best: on the same prepared
data, with the same type and the same setting of the allocator. Other rows show the peers as their
documentation sets them up. Numbers of machines are those of the list at the end.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what can be chosen."""
    parser.add_argument("results", type=Path, nargs="*", help="folders of JSON files (bench)")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks.md"), help="the page")


def write(args: argparse.Namespace) -> int:
    """Join all results into one page."""
    folders = args.results or [Path("bench")]
    results = read_all(folders)
    if not results:
        raise UserError(f"no results in {', '.join(map(str, folders))}; `bts bench` makes them")
    write_whole(args.out, compose(results))
    print(f"{len(results)} results in {args.out}")
    return 0


def compose(results: list[Result]) -> str:
    """Give the page: promises first, then each family, then the machines."""
    order = list(FAMILIES)
    results = sorted(results, key=lambda r: (order.index(r.family), r.device))
    machines = _machines(results)
    lines = [INTRODUCTION, "## What is promised, and what was measured", ""]
    lines += _promises(results, machines)
    for family in order:
        of_family = [result for result in results if result.family == family]
        if not of_family:
            continue
        lines += ["", f"## {family}", "", f"{FAMILIES[family][0].upper()}{FAMILIES[family][1:]}."]
        for result in of_family:
            lines += _section(result, machines)
        if family in ON_GPU and all(result.device == "cpu" for result in of_family):
            lines += ["", f"On a GPU: not measured; `bts bench {family} --device cuda` does it."]
    lines += ["", "## Machines", ""]
    for number, facts in enumerate(machines, start=1):
        lines += [f"{number}. " + "; ".join(f"{name} {value}" for name, value in facts)]
    return "\n".join(lines) + "\n"


def _promises(results: list[Result], machines: list[tuple[tuple[str, str], ...]]) -> list[str]:
    lines = ["| | on | target | measured | | command | machine | as of |"]
    lines += ["|---|---|---:|---:|---|---|---:|---|"]
    for result in results:
        number = machines.index(_facts(result)) + 1
        origin = f"`{result.command}` | {number} | {result.day or '–'}"
        for claim in result.claims:
            word = "holds" if claim.holds else "**missed**"
            ratios = f"{shown(claim.target)}× | {shown(claim.measured)}×"
            lines.append(f"| {claim.what} | {result.device} | {ratios} | {word} | {origin} |")
    measured = {claim.what for result in results for claim in result.claims}
    for what, target in GOALS.values():
        if what not in measured:
            lines.append(
                f"| {what} | cuda | {shown(target)}× | not measured | | `bts bench gpu` | | |"
            )
    return lines


def _section(result: Result, machines: list[tuple[tuple[str, str], ...]]) -> list[str]:
    number = machines.index(_facts(result)) + 1
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    settings = ", ".join(f"{name} {value}" for name, value in result.settings.items())
    load = result.machine.get("load", "unknown")
    lines = []
    for table in result.tables:
        lines += ["", f"**{table.title}** ({result.device})", "", *markdown(table)]
    if result.absent:
        absent = "; ".join(f"{name} ({reason})" for name, reason in result.absent.items())
        lines += ["", f"Could not be installed: {absent}."]
    return [
        *lines,
        "",
        f"`{result.command}`, {result.seconds:.0f} s on machine {number}, load {load}. {settings}. "
        f"{versions}.",
    ]


def _machines(results: list[Result]) -> list[tuple[tuple[str, str], ...]]:
    return list(dict.fromkeys(_facts(result) for result in results))


def _facts(result: Result) -> tuple[tuple[str, str], ...]:
    # The load differs from family to family and stands there.
    return tuple((name, value) for name, value in result.machine.items() if name != "load")
