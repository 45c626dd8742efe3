"""`bts distill`: teachers, their students and what alignment gained, in one command."""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bts_lightning import config as configuration
from bts_lightning import runs
from bts_lightning.commands.words import names_among, takes_words
from bts_lightning.data.splits import PARTS
from bts_lightning.errors import ConfigError, Parser, UserError
from bts_lightning.modalities import SUBSETS, parse_subset, subset_name
from bts_lightning.report.screen import Screen

if TYPE_CHECKING:
    from bts_lightning.distillation.chain.plan import ChainPlan, Students

# A shared student is trained for all subsets, so it is scored on all of them.
_USUAL: "dict[Students, str]" = {"per_subset": "single", "shared": "all"}
console = Screen()


def add_arguments(parser: Parser) -> None:
    takes_words(parser, "EXPERIMENT|KEY=VALUE", "as kd_unet data.root=DIR")
    add = parser.add_argument
    usual = "single, or all where one student serves them"
    add("--subsets", help=f"single, all, or as t1c,t2+flair ({usual})")
    text = "one for each subset, or one for all of them (%(default)s)"
    add("--students", default="per_subset", choices=tuple(_USUAL), help=text)
    also: dict[str, Any] = {"action": "append", "default": [], "metavar": "WORD"}
    text = "mix-in or override of the aligned teacher, after adaptor or medmap, whichever fits"
    add("--align", **also, help=text)
    add("--for-teachers", **also, help="mix-in or override of both teachers")
    add("--for-students", **also, help="mix-in or override of all students")
    add("--part", default="test", choices=PARTS, help="cases to score (%(default)s)")
    add("--agents", type=int, default=1, help="trainings at a time, which share the GPUs")
    add("--name", help="of the chain (EXPERIMENT)")
    add("--folder", type=Path, default=Path("distill"), help="of all chains (%(default)s)")
    text = "to measure the modality gap on: cpu, cuda, cuda:1 (a GPU if there is one)"
    add("--device", help=text)
    add("--plan", action="store_true", help="list the trainings and stop")


def run(args: argparse.Namespace) -> int:
    """Run a chain from the start, or go on with the one that the same words began."""
    names = [Path(name).stem for name in names_among(args.words)]
    if not names:
        raise UserError("name an experiment, as in: bts distill kd_unet data.root=DIR")
    if args.agents < 1:
        raise UserError(f"--agents is {args.agents}; give 1 or more")
    configuration.check_names(configuration.load(args.words, allow=args.allow))
    # Imported late: neither a help text nor a mistake needs Lightning.
    from bts_lightning.distillation.chain.plan import make_plan
    from bts_lightning.distillation.chain.result import write_result
    from bts_lightning.distillation.chain.run import Chain
    from bts_lightning.runs.devices import chosen_device, share_devices

    # It is for the very end, which may be days away.
    device = chosen_device(args.device)
    named = re.sub(r"[^\w.+-]+", "_", args.name or "+".join(names))
    plan = make_plan(
        args.words,
        folder=args.folder / named,
        subsets=_subsets(args.subsets or _USUAL[args.students]),
        students=args.students,
        align=args.align,
        for_teachers=args.for_teachers,
        for_students=args.for_students,
        allow=args.allow,
    )
    if args.plan:
        _show(plan)
        return 0
    for stage in plan.stages:
        runs.require_data(stage.config)
    chain = Chain(plan, args.part, args.allow, console)
    try:
        chain.work(share_devices(args.agents))
    except KeyboardInterrupt:
        console.print(f"stopped; the same command goes on with {plan.folder}")
        return 130
    page = write_result(plan, args.part, device, console)
    console.print(f"result  {page}\nreport  {page.with_suffix('.html').resolve().as_uri()}")
    return 0


def _subsets(text: str) -> list[str]:
    """Read the option `--subsets` into names in the order of tables."""
    if text == "single":
        return [subset_name(subset) for subset in SUBSETS if sum(subset) == 1]
    if text == "all":
        return [subset_name(subset) for subset in SUBSETS]
    try:
        chosen = [parse_subset(name) for name in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--subsets {text}: {error}; or write single, or all") from error
    return [subset_name(subset) for subset in SUBSETS if subset in chosen]


def _show(plan: "ChainPlan") -> None:
    console.print(f"subsets  {', '.join(plan.subsets)}")
    for stage in plan.stages:
        after = f"  after {', '.join(stage.needs)}" if stage.needs else ""
        console.print(f"{stage.name:24}{stage.run}{after}")
