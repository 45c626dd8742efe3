"""What `bts evaluate` does: score cases in all subsets, one pass, and write the report."""

import json
import time
from pathlib import Path
from typing import Any

import pandas as pd
from lightning import Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import WandbLogger
from rich.console import Console

from bts_lightning import runs
from bts_lightning.callbacks.case_scorer import CaseScorer, rows_file
from bts_lightning.config import build
from bts_lightning.config.schema import Node
from bts_lightning.data.splits import Part
from bts_lightning.errors import UserError
from bts_lightning.files import sha256, write_whole
from bts_lightning.inference import Protocol
from bts_lightning.memory import keep_freed_memory
from bts_lightning.report.slices import keep_slices
from bts_lightning.report.table import EvaluationTable, read_rows
from bts_lightning.report.write import choose_cases, write_report
from bts_lightning.runs.devices import check_accelerator, chosen_device
from bts_lightning.runs.facts import commit, versions
from bts_lightning.runs.opening import load_task
from bts_lightning.runs.quiet import hush

console = Console(highlight=False, markup=False, soft_wrap=True)


def score(
    run: Path,
    folder: Path,
    nodes: dict[str, Any],
    checkpoint: Path,
    part: Part,
    device: str | None,
    *,
    predictions: bool,
) -> None:
    """Score the cases that have no row in the folder yet, and write its table and report.

    Args:
        run: where the network was trained.
        folder: of this evaluation.
        nodes: what the run's configuration says, checked.
        checkpoint: the weights.
        part: which part of the split.
        device: `cpu`, `cuda` or `cuda:1`; what the configuration says by default.
        predictions: also write the label maps of all subsets as NIfTI.
    """
    hush()
    keep_freed_memory()
    task = load_task(nodes, checkpoint)
    data = build(nodes["data"])
    protocol: Protocol = build(nodes["evaluation"])
    protocol.admit(task.net)
    trainer = _trainer(nodes["trainer"].arguments, device)
    scorer = CaseScorer(folder, protocol, predictions=predictions)
    data.prepare_data()
    data.setup("test")
    if not getattr(data.split, part):
        raise UserError(f"the {part} part of split {data.split.name} has no case; choose another")
    runs.check_split(run, data, [part])
    facts = _protocol_facts(run, nodes, protocol, checkpoint, data, part)
    if trainer.is_global_zero:
        facts = _open_folder(folder, facts)
    trainer.callbacks.append(scorer)  # type: ignore[attr-defined]
    trainer.test(task, dataloaders=data.case_dataloader(part), verbose=False)
    trainer.strategy.barrier("evaluated")
    if trainer.is_global_zero:
        table = _finish(folder, data, part, facts)
        # The table joins the W&B run of the training, if that had one.
        node = nodes["logger"].get("wandb")
        if node and issubclass(node.cls, WandbLogger):
            logger: WandbLogger = build(node, save_dir=str(run / "logs"))
            logger.log_table(f"evaluation/{folder.name}", dataframe=table.rows)
            logger.experiment.finish()
        console.print(f"table   {folder / 'cases.csv'}\nreport  {folder / 'report.html'}")


def _trainer(given: dict[str, Any], device: str | None) -> Trainer:
    """Keep what the configuration says about devices, and nothing about training."""
    kept = ("accelerator", "devices", "num_nodes", "strategy")
    settings = {name: given[name] for name in kept if given.get(name) is not None}
    if device is None:
        check_accelerator(settings.get("accelerator"), key="--device")
    else:
        chosen = chosen_device(device)
        one = [chosen.index] if chosen.type == "cuda" and chosen.index else 1
        settings |= {"accelerator": chosen.type, "devices": one}
    trainer: Trainer = build(
        Node("trainer", Trainer, settings, is_partial=False),
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[RichProgressBar()] if console.is_terminal else [],
        enable_progress_bar=console.is_terminal,
        use_distributed_sampler=False,
    )
    return trainer


def _protocol_facts(
    run: Path,
    nodes: dict[str, Any],
    protocol: Protocol,
    checkpoint: Path,
    data: Any,
    part: str,
) -> dict[str, Any]:
    """Say everything that can change the table, so that tables are only compared if they may be."""
    split = {"name": data.split.name, "fingerprint": data.split.lists_fingerprint, "part": part}
    return {
        "run": str(run),
        "experiment": run.resolve().parent.name,
        "network": nodes["task"].arguments["net"].cls.__name__,
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": sha256(checkpoint),
        "commit": commit(),
        "versions": versions(),
        "split": split,
        "data_fingerprint": data.fingerprint,
        "seed": nodes["seed"],
        # It changes nothing, but rows of the one pass would prove nothing in its place.
        "naive": protocol.naive,
        **protocol.facts(),
    }


# What may differ between the start of an evaluation and its continuation.
_MAY_DIFFER = ("commit", "versions", "run", "experiment", "created", "cases", "unscored")


def _open_folder(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Start a folder of rows, or make sure that the rows in it were made in the same way.

    Gives the facts about the first of them.
    """
    file = folder / "protocol.json"
    if file.exists():
        before: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        changed = sorted(
            key
            for key in facts
            if key not in _MAY_DIFFER and json.dumps(before.get(key)) != json.dumps(facts[key])
        )
        if changed:
            raise UserError(
                f"{folder} holds an evaluation with another {', '.join(changed)}; give this one a "
                "name of its own with --name, or delete that folder"
            )
        return before
    facts = facts | {"created": time.strftime("%FT%T")}
    write_whole(file, json.dumps(facts, indent=2) + "\n")
    return facts


def _finish(folder: Path, data: Any, part: str, facts: dict[str, Any]) -> EvaluationTable:
    """Join the rows of all cases, each exactly once, into table, summary and report."""
    names = sorted(getattr(data.split, part))
    missing = [name for name in names if not rows_file(folder, name).exists()]
    if missing:
        raise UserError(
            f"{len(missing)} cases were not evaluated, {missing[0]} first; run it again"
        )
    tables = [read_rows(rows_file(folder, name)) for name in names]
    empty = [name for name, table in zip(names, tables, strict=True) if table.empty]
    unscored = [name for name in empty if not data.cases[name].is_labelled]
    unshown = [name for name in empty if name not in unscored]
    if unshown:
        console.print(f"these cases have none of the subsets: {', '.join(unshown)}", style="yellow")
    if unscored:
        console.print(
            f"not scored, because there is no label: {', '.join(unscored)}; "
            f"their label maps are in {folder / 'predictions'}",
            style="yellow",
        )
    scored = [table for table in tables if not table.empty]
    if not scored:
        raise UserError(
            f"none of the {len(names)} cases has a label and one of the subsets, so there is "
            "nothing to score"
        )
    rows = pd.concat(scored, ignore_index=True)
    table = EvaluationTable.from_rows(rows)
    facts = facts | {"cases": len(scored), "unscored": unscored}
    write_whole(folder / "protocol.json", json.dumps(facts, indent=2) + "\n")
    write_whole(folder / "cases.csv", rows.to_csv(index=False))
    write_report(folder, table, facts)
    # About a megabyte a case; the report shows a dozen.
    keep_slices(folder, choose_cases(table))
    return table
