"""`bts evaluate`: score every case of a split in all subsets, one pass, and write the report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig
from rich.console import Console

from bts_lightning import config as configuration
from bts_lightning import runs
from bts_lightning.callbacks.case_scorer import CaseScorer
from bts_lightning.data.splits import Part
from bts_lightning.errors import UserError
from bts_lightning.files import sha256
from bts_lightning.inference import Protocol
from bts_lightning.memory import keep_freed_memory
from bts_lightning.report.folder import finish_folder, open_folder
from bts_lightning.report.table import EvaluationTable
from bts_lightning.runs.devices import check_accelerator, chosen_device
from bts_lightning.runs.facts import commit, versions
from bts_lightning.runs.opening import load_run, load_task
from bts_lightning.runs.quiet import hush

console = Console(highlight=False, markup=False, soft_wrap=True)


def evaluate(
    run: Path,
    *,
    words: Sequence[str] = (),
    allow: Sequence[str] = (),
    name: str | None = None,
    part: Part = "test",
    checkpoint: Path | None = None,
    device: str | None = None,
    predictions: bool = False,
) -> Path:
    """Evaluate a run on one part of its split and give the folder with table and report.

    An interrupted evaluation goes on where it stopped; one with another protocol or checkpoint
    must have another name, because rows of the two must never stand in one table.

    Args:
        run: the run folder.
        words: overrides, as `evaluation.overlap=0.25` or `data.root=OTHER`.
        allow: packages that `_target_` may name beyond ours.
        name: the folder below `RUN/evaluation`; the part of the split by default.
        part: which part of the split.
        checkpoint: another checkpoint than the best.
        device: `cpu`, `cuda` or `cuda:1`; what the configuration says by default.
        predictions: also write the label maps of all subsets as NIfTI.
    """
    hush()
    keep_freed_memory()
    if name is not None and (Path(name).name != name or name == ".."):
        raise UserError(f"--name {name}: give the name of a folder in {run / 'evaluation'}")
    config = load_run(run, words, allow)
    checkpoint = checkpoint or runs.best_checkpoint(run)
    folder = run / "evaluation" / (name or part)
    task = load_task(config, checkpoint)
    data = configuration.build(config.data)
    protocol: Protocol = configuration.build(config.evaluation)
    protocol.admit(task.net)
    trainer = _trainer(config, device)
    data.prepare_data()
    data.setup("test")
    if not getattr(data.split, part):
        raise UserError(f"the {part} part of split {data.split.name} has no case; choose another")
    runs.check_split(run, data, [part])
    scorer = CaseScorer(folder, protocol, getattr(data.split, part), predictions=predictions)
    facts = _protocol_facts(run, config, protocol, checkpoint, data, part)
    if trainer.is_global_zero:
        facts = open_folder(folder, facts)
    trainer.callbacks.append(scorer)  # type: ignore[attr-defined]
    trainer.test(task, dataloaders=data.case_dataloader(part), verbose=False)
    trainer.strategy.barrier("evaluated")
    if trainer.is_global_zero:
        names = sorted(getattr(data.split, part))
        labelled = {name for name in names if data.cases[name].is_labelled}
        table = finish_folder(folder, facts, names, labelled, console)
        _send_to_wandb(run, config, folder.name, table)
        console.print(f"table   {folder / 'cases.csv'}\nreport  {folder / 'report.html'}")
    return folder


def _send_to_wandb(run: Path, config: DictConfig, name: str, table: EvaluationTable) -> None:
    """Add the table to the W&B run of the training, if that had one."""
    node = (config.logger or {}).get("wandb")
    logger = configuration.build(node, save_dir=str(run / "logs")) if node else None
    if isinstance(logger, WandbLogger):
        logger.log_table(f"evaluation/{name}", dataframe=table.rows)
        logger.experiment.finish()


def _trainer(config: DictConfig, device: str | None) -> Trainer:
    """Keep what the configuration says about devices, and nothing about training."""
    given = {k: config.trainer.get(k) for k in ("accelerator", "devices", "num_nodes", "strategy")}
    settings = {name: value for name, value in given.items() if value is not None}
    if device is None:
        check_accelerator(settings.get("accelerator"), key="--device")
    else:
        chosen = chosen_device(device)
        one = [chosen.index] if chosen.type == "cuda" and chosen.index else 1
        settings |= {"accelerator": chosen.type, "devices": one}
    trainer: Trainer = configuration.build(
        {"_target_": "lightning.Trainer", **settings},
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
    config: DictConfig,
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
        "network": config.task.net._target_.rpartition(".")[2],
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": sha256(checkpoint),
        "commit": commit(),
        "versions": versions(),
        "split": split,
        "data_fingerprint": data.fingerprint,
        "seed": config.seed,
        # It changes nothing, but rows of the one pass would prove nothing in its place.
        "naive": protocol.naive,
        **protocol.facts(),
    }
