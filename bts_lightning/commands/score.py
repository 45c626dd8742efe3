"""What `bts evaluate` does: score cases in all subsets, one pass, and write the report."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import WandbLogger

from bts_lightning import runs
from bts_lightning.callbacks.case_scorer import CaseScorer
from bts_lightning.config import build
from bts_lightning.config.schema import Node
from bts_lightning.data.splits import Part
from bts_lightning.errors import UserError
from bts_lightning.files import sha256
from bts_lightning.inference import Protocol
from bts_lightning.memory import keep_freed_memory
from bts_lightning.report.folder import finish_folder, making, open_folder
from bts_lightning.report.screen import Screen
from bts_lightning.report.table import EvaluationTable
from bts_lightning.runs.devices import check_accelerator, chosen_device
from bts_lightning.runs.facts import commit, versions
from bts_lightning.runs.limits import check_devices
from bts_lightning.runs.lock import only_one
from bts_lightning.runs.opening import check_scheme, load_task
from bts_lightning.runs.quiet import hush
from bts_lightning.runs.ranks import together
from bts_lightning.runs.temperature import with_temperature

console = Screen()


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
    protocol = with_temperature(build(nodes["evaluation"]), run, checkpoint)
    protocol.admit(task.net, task.loss.scheme_name)
    trainer = _trainer(nodes["trainer"].arguments, device)
    data = open_part(run, nodes, part)
    check_scheme(task, data)
    facts = _protocol_facts(run, nodes, protocol, checkpoint, data, part)
    scheme = task.loss.scheme_name
    # Tables from before there were schemes read as they did.
    facts |= {"scheme": scheme} if scheme != "brats" else {}
    cases = getattr(data.split, part)
    scorer = CaseScorer(folder, protocol, cases, making(facts), predictions=predictions)
    trainer.callbacks.append(scorer)  # type: ignore[attr-defined]
    with (
        only_one(folder, "evaluating") if trainer.is_global_zero else nullcontext(),
        together(trainer, "the same command goes on"),
    ):
        if trainer.is_global_zero:
            facts = open_folder(folder, facts)
        trainer.test(task, dataloaders=data.case_dataloader(part), verbose=False)
        trainer.strategy.barrier("evaluated")
        if trainer.is_global_zero:
            names = sorted(getattr(data.split, part))
            labelled = {name for name in names if data.cases[name].is_labelled}
            table = finish_folder(folder, facts, scorer.made, names, labelled, console)
            _send_to_wandb(run, nodes["logger"].get("wandb"), folder.name, table)
            console.print(f"table   {folder / 'cases.csv'}\nreport  {folder / 'report.html'}")


def open_part(run: Path, nodes: dict[str, Any], part: Part) -> Any:
    """Prepare the data of a run, and refuse a part that is empty or was another part before."""
    data = build(nodes["data"])
    data.prepare_data()
    data.setup("test")
    if not getattr(data.split, part):
        raise UserError(f"the {part} part of split {data.split.name} has no case; choose another")
    runs.check_split(run, data, [part])
    return data


def _send_to_wandb(run: Path, node: Node | None, name: str, table: EvaluationTable) -> None:
    """Add the table to the W&B run of the training, if that had one."""
    if node and issubclass(node.cls, WandbLogger):
        logger: WandbLogger = build(node, save_dir=str(run / "logs"))
        logger.log_table(f"evaluation/{name}", dataframe=table.rows)
        logger.experiment.finish()


def _trainer(given: dict[str, Any], device: str | None) -> Trainer:
    """Keep what the configuration says about devices, and nothing about training."""
    kept = ("accelerator", "devices", "num_nodes", "strategy")
    settings = {name: given[name] for name in kept if given.get(name) is not None}
    if device is None:
        check_accelerator(settings.get("accelerator"), key="--device")
        check_devices(settings)
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
