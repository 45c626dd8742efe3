"""What `bts import` does: read, translate, and write a run that every other verb takes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bts_lightning import runs
from bts_lightning.config import build
from bts_lightning.data.layouts.find import find_cases
from bts_lightning.data.splits import Split, read_lists
from bts_lightning.errors import DataError
from bts_lightning.files import sha256, write_whole
from bts_lightning.modalities import MODALITIES, SHOWN_AS
from bts_lightning.networks.official.state import Taken, learned, translate
from bts_lightning.networks.official.table import Table
from bts_lightning.report.screen import Screen
from bts_lightning.runs.checkpoints import WholeCheckpoints
from bts_lightning.runs.facts import commit, versions
from bts_lightning.runs.foreign import read_state
from bts_lightning.runs.lock import only_one
from bts_lightning.task import SegmentationTask

console = Screen()


def convert(table: Table, file: Path, config: DictConfig, out: Path | None) -> Path:
    """Write the run; its configuration comes last, so that half a run is none."""
    official = read_state(file, table.parts)
    task: SegmentationTask = build(config.task)
    module = task if table.whole_task else task.net
    try:
        taken = translate(official, learned(module), table)
    except DataError as error:
        raise DataError(f"{file}: {error}") from error
    module.load_state_dict(taken.ours, strict=False)
    split = _split(config)
    run = out or runs.new_run(table.name)
    with only_one(run, "importing into"):
        WholeCheckpoints().save_checkpoint(
            {"state_dict": task.state_dict()}, run / "checkpoints" / "best.ckpt"
        )
        facts = {
            "commit": commit(),
            "versions": versions(),
            "network": type(task.net).__name__,
            "imported": _facts(table, file, taken),
        }
        write_whole(run / "provenance.json", json.dumps(facts, indent=2) + "\n")
        if split:
            split.save(run / "split.json")
        runs.save_config(run, config)
    _tell(table, taken, run, split)
    return run


def _split(config: DictConfig) -> Split | None:
    """Give the cases that the weights were made with, where the user names them."""
    given = OmegaConf.to_container(config.data).get("split", "random")  # type: ignore[union-attr]
    if isinstance(given, str) and given.endswith(".json"):
        return Split.load(Path(given))
    if not isinstance(given, Mapping):
        return None  # a draw of ours says nothing about them
    cases = find_cases(config.data.root).cases
    missing = config.data.get("missing_cases", "error")
    return read_lists(dict(given), cases, fingerprint="", missing=missing)


def _facts(table: Table, file: Path, taken: Taken) -> dict[str, Any]:
    return {
        "table": table.name,
        "network": table.network,
        "source": table.source,
        "file": file.name,
        "sha256": sha256(file),
        "parameters": {"taken": taken.taken, "skipped": taken.skipped, "refused": 0},
        "channels": table.reads,
        "axes": table.axes,
        "predictions": table.gives or None,
        "differs": table.remarks,
    }


def _tell(table: Table, taken: Taken, run: Path, split: Split | None) -> None:
    console.print(f"{table.network}, {table.source}")
    console.print(
        f"taken {taken.taken[0]} parameters ({taken.taken[1]:,} numbers), skipped "
        f"{taken.skipped[0]} without effect ({taken.skipped[1]:,}), refused 0"
    )
    theirs, ours = (", ".join(SHOWN_AS[m] for m in order) for order in (table.reads, MODALITIES))
    orders = [("channels", theirs, ours)] if theirs != ours else []
    if table.axes != "xyz":
        orders.append(("axes", ", ".join(table.axes), "x, y, z"))
    if table.gives:
        orders.append(
            (
                "predictions",
                ", ".join(table.gives),
                ", ".join(table.gives[i] for i in table.output_order),
            )
        )
    for what, official, here in orders:
        console.print(f"{what}: {official} officially, {here} here; the weights were reordered")
    for remark in table.remarks:
        console.print(f"differs: {remark}", style="yellow")
    if split is None:
        console.print(
            "nobody here knows which cases it was trained on: with the lists of its authors, as "
            "data.split=split.json, `bts evaluate` scores those that it has not seen",
            style="yellow",
        )
    console.print(f"run     {run}\nnext    bts evaluate {run} data.root=DIR")
