"""The rows of a GPU, each in the time that is left for it; then two short trainings."""

import argparse
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch

from bts_lightning.bench import page, plan, training
from bts_lightning.bench.machine import start
from bts_lightning.bench.result import Cell, Result, Table, read_all, show
from bts_lightning.bench.step import FAILED
from bts_lightning.bench.timing import reason
from bts_lightning.bench.worker import Worker
from bts_lightning.files import write_whole

MINUTES = {"cpu": 30.0, "cuda": 8.0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what can be chosen."""
    parser.add_argument("networks", nargs="*", help="as a2fseg:variant=paper (one of each class)")
    parser.add_argument("--minutes", type=float, help="in all (8; 30 on a CPU)")
    parser.add_argument("--plan", action="store_true", help="print what each row costs, and stop")
    text = "matrix product in half precision that the plan assumes, TFLOP/s (989, an H100's)"
    parser.add_argument("--peak", type=float, help=text)
    text = "a phantom that was prepared elsewhere, where none can be made"
    parser.add_argument("--data", type=Path, help=text)
    # Not among the results of a CPU, which those of the twin would replace.
    parser.set_defaults(results=Path("gpu"))


def measure(args: argparse.Namespace) -> Result:
    """Measure row after row; one that fails, or has no time, says so and stops no other."""
    began, kind = time.monotonic(), args.device.type
    pace = plan.PACE[kind]
    if args.peak:
        half = 1e12 * args.peak
        pace = replace(pace, half=half, single=half * pace.single / pace.half)
    rows, trainings = plan.lay_out(args.networks, kind, pace), training.TRAININGS[kind]
    minutes = args.minutes or MINUTES[kind]
    if args.plan:
        # Of a device that need not be here.
        args.device = torch.device("cpu")
        table = plan.table(rows, trainings, pace, minutes)
        return replace(start("gpu", args), tables=[table])
    result = start("gpu", args, settings={"minutes": minutes})
    until = began + 60 * minutes
    found: dict[str, Result] = {}
    done: list[list[Cell]] = []
    asked = Table("What was asked, and what came", ["", "s planned", "s", ""], done)
    with closing(Worker(kind, args.scratch.resolve(), pace)) as worker:
        for row in rows:
            reserved = sum(trainings.values())
            part, planned, said = worker.measure(row, until - reserved - time.monotonic())
            _note(done, f"bts bench {row.words}", planned, began, said)
            if part is not None:
                join(found, part, args.command)
                found[part.family].save(args.results)
    for words, least in trainings.items():
        # The demo ends by itself; what stands last goes on until there is no time.
        is_last = words == list(trainings)[-1]
        seconds = max(least, until - time.monotonic()) if is_last else least
        said = "measured"
        try:
            result.tables += training.train(words, training.data(args), seconds, args)
        except Exception as error:  # the figures above must be kept
            said = FAILED + reason(error)
        _note(done, f"bts train {words}", seconds, began, said)
    for part in found.values():
        show(part)
    result.tables.append(asked)
    result.seconds = time.monotonic() - began
    result.save(args.results)
    write_whole(args.results / "gpu.md", page.compose(read_all([args.results])))
    return result


def join(found: dict[str, Result], part: Result, command: str) -> None:
    """Add the rows of a result to those of its family, table by table."""
    part.command = command
    whole = found.setdefault(part.family, part)
    if whole is part:
        return
    whole.seconds += part.seconds
    whole.claims += part.claims
    tables = {table.title: i for i, table in enumerate(whole.tables)}
    for table in part.tables:
        if (i := tables.get(table.title)) is None:
            whole.tables.append(table)
        else:
            rows = [*whole.tables[i].rows, *table.rows]
            whole.tables[i] = replace(whole.tables[i], rows=rows)


def _note(done: list[list[Cell]], words: str, planned: float, began: float, said: str) -> None:
    seconds = time.monotonic() - began - sum(float(row[2] or 0) for row in done)
    done.append([f"`{words}`", planned, seconds, said])
    print(f"{said}: {words}", flush=True)
