"""`bts prepare`: look at a data set, cache it, and say what it holds and what is broken."""

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import get_args

from rich.filesize import decimal
from rich.table import Table

from bts_lightning.data.cache.normalise import Crop, Normalisation, Recipe
from bts_lightning.data.cache.prepare import CachedCase, Prepared, build, fingerprint
from bts_lightning.errors import ConfigError, Parser
from bts_lightning.modalities import MODALITIES, SCHEMES, SHOWN_AS, dots, subset_name
from bts_lightning.report.screen import Screen

# More lines than this nobody reads; the rest are counted.
MOST_IGNORED = 5
WIDTH_OF_A_FILE = 200


def add_arguments(parser: Parser) -> None:
    parser.add_argument("root", type=Path, help="the data set, in any layout that BraTS had")
    parser.add_argument("--cache", type=Path, help="where to cache (ROOT/.bts_cache)")
    parser.add_argument("--skip-broken", action="store_true", help="go on with the good cases")
    parser.add_argument("--verify", action="store_true", help="read all that is cached as well")
    parser.add_argument("--workers", type=int, help="processes (one a core)")
    parser.add_argument("--normalisation", choices=get_args(Normalisation), default="zscore")
    parser.add_argument(
        "--scheme", choices=SCHEMES, default="brats", help="of labels (%(default)s)"
    )
    parser.add_argument("--crop", choices=get_args(Crop), default="brain")


def run(args: argparse.Namespace) -> int:
    """Prepare a data set, print what was found, give the exit status: 2 when a case is broken."""
    if args.workers is not None and args.workers < 1:
        raise ConfigError(f"workers is {args.workers}; give 1 or more")
    recipe = Recipe(normalisation=args.normalisation, crop=args.crop, scheme=args.scheme)
    prepared = build(args.root, args.cache, recipe=recipe, workers=args.workers, verify=args.verify)
    console = Screen()
    if not console.is_terminal:
        # A file or a pipe has no edge at which a file name must be cut.
        console.width = WIDTH_OF_A_FILE
    console.print(_summary(prepared))
    if prepared.cases:
        console.print(_modalities(prepared.cases))
        console.print(_volumes(prepared.cases, SCHEMES[args.scheme].regions))
    _print_ignored(console, prepared.found.ignored)
    if not prepared.faults:
        return 0
    console.print(_faults(prepared))
    broken = len({fault.case for fault in prepared.faults})
    if args.skip_broken and prepared.cases:
        console.print(f"Broken cases: {broken}, left out. Used: {len(prepared.cases)}.")
        return 0
    hint = "or leave them out with --skip-broken" if prepared.cases else "no case is usable"
    console.print(f"Broken cases: {broken}. Mend or remove them, {hint}.")
    return 2


def _summary(prepared: Prepared) -> Table:
    cases = prepared.cases
    table = Table(title=str(prepared.found.root), show_header=False, title_justify="left")
    labelled = sum(case.is_labelled for case in cases)
    values = sorted({value for case in cases for value in case.description["label_found"]})
    size = sum(array["size"] for case in cases for array in case.description["arrays"].values())
    layouts = Counter(case.layout for case in cases)
    rows = {
        "Layout": prepared.found.layout
        if len(layouts) < 2
        else ", ".join(f"{layout} ({count} cases)" for layout, count in sorted(layouts.items())),
        "Cases": f"{len(cases)} of {len({case.patient for case in cases})} patients",
        "Labelled": f"{labelled}, the other {len(cases) - labelled} only to predict",
        "Label values": ", ".join(map(str, values)) or "none",
        "Grid": _grids(cases),
        "Cache": f"{decimal(size)} in {prepared.home}",
        "Built now": f"{prepared.built}, the other {len(cases) - prepared.built} were there",
        "Fingerprint": fingerprint(cases),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _grids(cases: Sequence[CachedCase]) -> str:
    shapes = Counter(
        "×".join(map(str, case.geometry.shape))
        + " at "
        + "×".join(f"{length:g}" for length in case.geometry.spacing)
        + " mm"
        for case in cases
    )
    common = [shape for shape, _ in shapes.most_common(2)]
    return "; ".join(common) + (f" and {len(shapes) - 2} others" if len(shapes) > 2 else "")


def _modalities(cases: Sequence[CachedCase]) -> Table:
    shown = " ".join(SHOWN_AS[modality] for modality in MODALITIES)
    table = Table(title="Modalities", title_justify="left")
    for column in (shown, "subset"):
        table.add_column(column)
    table.add_column("cases", justify="right")
    for subset, count in Counter(case.available for case in cases).most_common():
        table.add_row(dots(subset), subset_name(subset), str(count))
    return table


def _volumes(cases: Sequence[CachedCase], regions: Iterable[str]) -> Table:
    table = Table(title="Tumour volumes in ml", title_justify="left")
    table.add_column("region")
    for column in ("cases with it", "smallest", "median", "largest"):
        table.add_column(column, justify="right")
    measured = [case.volumes_ml for case in cases if case.volumes_ml is not None]
    for region in regions:
        here = [volumes[region] for volumes in measured if volumes[region] > 0]
        figures = [f"{value:.2f}" for value in (min(here), median(here), max(here))] if here else []
        table.add_row(region, f"{len(here)} of {len(measured)}", *figures)
    return table


def _faults(prepared: Prepared) -> Table:
    root = prepared.found.folder
    table = Table(title="Faults", title_justify="left")
    for column in ("case", "file", "reason"):
        # Whole names: they are what the user will look for.
        table.add_column(column, overflow="fold")
    for fault in prepared.faults:
        inside = fault.file.is_relative_to(root)
        file = fault.file.relative_to(root) if inside else fault.file
        table.add_row(fault.case, str(file), fault.reason)
    return table


def _print_ignored(console: Screen, ignored: Sequence[Path]) -> None:
    if not ignored:
        return
    console.print(f"{len(ignored)} NIfTI files belong to no case and were not looked at:")
    for path in ignored[:MOST_IGNORED]:
        console.print(f"  {path}")
    if len(ignored) > MOST_IGNORED:
        console.print("  …")
