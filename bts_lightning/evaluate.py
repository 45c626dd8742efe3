"""`bts evaluate`: score every case of a split in all subsets, one pass, and write the report."""

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig
from rich.console import Console

from bts_lightning import config as configuration
from bts_lightning import runs
from bts_lightning.allocator import keep_freed_memory
from bts_lightning.callbacks import network_of
from bts_lightning.data.cache import CachedCase, write_prediction
from bts_lightning.data.splits import Part
from bts_lightning.errors import UserError
from bts_lightning.inference import Protocol, segment
from bts_lightning.metrics.score import Scores, score
from bts_lightning.modalities import (
    REGIONS,
    SUBSETS,
    Subset,
    parse_subset,
    subset_name,
    subsets_within,
)
from bts_lightning.quiet import hush
from bts_lightning.report.slices import CaseSlices, choose_slices, keep_slices, save_slices
from bts_lightning.report.table import COLUMNS, METRICS, EvaluationTable, read_rows
from bts_lightning.report.write import choose_cases, write_report
from bts_lightning.task import SegmentationTask

console = Console(highlight=False, soft_wrap=True)


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
        device: `cpu` or `cuda`; chosen by itself by default.
        predictions: also write the label maps of all subsets as NIfTI.
    """
    hush()
    keep_freed_memory()
    config = load_run(run, words, allow)
    checkpoint = checkpoint or runs.best_checkpoint(run)
    folder = run / "evaluation" / (name or part)
    task = load_task(config, checkpoint)
    data = configuration.build(config.data)
    protocol = configuration.build(config.evaluation)
    trainer = _trainer(config, device)
    scorer = CaseScorer(folder, protocol, predictions=predictions)
    data.prepare_data()
    data.setup("test")
    facts = _protocol_facts(run, config, protocol, checkpoint, data, part)
    if trainer.is_global_zero:
        _open_folder(folder, facts)
    trainer.callbacks.append(scorer)  # type: ignore[attr-defined]
    trainer.test(task, dataloaders=data.case_dataloader(part), verbose=False)
    trainer.strategy.barrier("evaluated")
    if trainer.is_global_zero:
        _finish(folder, data, part, facts)
        _send_to_wandb(run, config, folder)
        console.print(f"table   {folder / 'cases.csv'}\nreport  {folder / 'report.html'}")
    return folder


def _send_to_wandb(run: Path, config: DictConfig, folder: Path) -> None:
    """Add the table to the W&B run of the training, if that had one."""
    for name, node in (config.logger or {}).items():
        logger = configuration.build(node, save_dir=str(run / "logs")) if name == "wandb" else None
        if isinstance(logger, WandbLogger):
            rows = EvaluationTable.read(folder).rows
            logger.log_table(f"evaluation/{folder.name}", dataframe=rows)
            logger.experiment.finish()


def load_run(run: Path, words: Sequence[str] = (), allow: Sequence[str] = ()) -> DictConfig:
    """Read the configuration that a run was trained with, and override it."""
    config = configuration.load([str(runs.config_file(run)), *words], allow=allow)
    configuration.check(config, supplied=configuration.SUPPLIED)
    return config


def load_task(config: DictConfig, checkpoint: Path) -> SegmentationTask:
    """Build the task of a configuration with the weights of a checkpoint."""
    task: SegmentationTask = configuration.build(config.task)
    runs.load_weights(task, runs.read_checkpoint(checkpoint), checkpoint)
    return task.eval()


class CaseScorer(Callback):
    """Segment, score and write down one case after the other; each appears whole or not at all."""

    def __init__(self, folder: Path, protocol: Protocol, *, predictions: bool = False) -> None:
        self.folder = folder
        self.protocol = protocol
        self.predictions = predictions
        names = protocol.subsets
        self.subsets = [parse_subset(n) for n in names] if names else list(SUBSETS)

    def on_test_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Do a case that no earlier evaluation has finished."""
        case: CachedCase | None = batch["case"]
        if case is None or _rows_file(self.folder, case.name).exists():
            return
        subsets = subsets_within(case.available, self.subsets)
        if not subsets:
            _write_rows(self.folder, case.name, [])
            return
        net, loss = network_of(pl_module)
        predicted = segment(
            net,
            loss,
            case.image,
            case.available,
            self.protocol,
            subsets,
            pl_module.device,
        )
        if self.predictions or case.label is None:
            for subset, label_map in zip(subsets, predicted, strict=True):
                out = self.folder / "predictions" / subset_name(subset) / f"{case.name}.nii.gz"
                write_prediction(case, label_map, out)
        rows: list[dict[str, Any]] = []
        if case.label is not None:
            truth = np.asarray(case.label)
            scores = score(
                predicted,
                truth,
                case.geometry.spacing,
                hd95=self.protocol.hd95,
                empty=self.protocol.empty,
            )
            rows = case_rows(case.name, subsets, scores)
            names = [subset_name(subset) for subset in subsets]
            save_slices(self.folder, _slices(case, truth, predicted, names))
        _write_rows(self.folder, case.name, rows)


def case_rows(case: str, subsets: Sequence[Subset], scores: Scores) -> list[dict[str, Any]]:
    """Lay the scores of a case out as rows of the evaluation table."""
    return [
        {
            "case": case,
            "subset": subset_name(subset),
            "region": region,
            **{name: float(getattr(scores, name)[s, r]) for name in METRICS},
        }
        for s, subset in enumerate(subsets)
        for r, region in enumerate(REGIONS)
    ]


def _slices(
    case: CachedCase, truth: np.ndarray, predicted: np.ndarray, names: list[str]
) -> CaseSlices:
    geometry, box = case.geometry, case.geometry.box
    return choose_slices(
        case.name,
        np.asarray(case.image),
        truth,
        predicted,
        names,
        spacing=geometry.spacing,
        affine=np.asarray(geometry.affine),
        start=(box[0][0], box[1][0], box[2][0]),
    )


def _write_rows(folder: Path, case: str, rows: list[dict[str, Any]]) -> None:
    table = pd.DataFrame(rows, columns=COLUMNS)
    runs.write_text(_rows_file(folder, case), table.to_csv(index=False))


def _rows_file(folder: Path, case: str) -> Path:
    """Name the file of one case's rows; quoted, because a manifest may call a case `a/b`."""
    return folder / "rows" / f"{quote(case, safe='')}.csv"


def _trainer(config: DictConfig, device: str | None) -> Trainer:
    """Keep what the configuration says about devices, and nothing about training."""
    given = {k: config.trainer.get(k) for k in ("accelerator", "devices", "num_nodes", "strategy")}
    settings = {name: value for name, value in given.items() if value is not None}
    if device is not None:
        settings |= {"accelerator": {"cuda": "gpu"}.get(device, device), "devices": 1}
    return Trainer(
        **settings,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[RichProgressBar()] if console.is_terminal else [],
        enable_progress_bar=console.is_terminal,
        use_distributed_sampler=False,
    )


def _protocol_facts(
    run: Path,
    config: DictConfig,
    protocol: Protocol,
    checkpoint: Path,
    data: Any,
    part: str,
) -> dict[str, Any]:
    """Say everything that can change the table, so that tables are only compared if they may be."""
    return {
        "run": str(run),
        "experiment": run.parent.name,
        "network": config.task.net._target_.rpartition(".")[2],
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "commit": runs.commit(),
        "versions": runs.versions(),
        "split": {"name": data.split.name, "fingerprint": data.split.fingerprint, "part": part},
        "data_fingerprint": data.fingerprint,
        "seed": config.seed,
        **protocol.facts(),
    }


# What may differ between the start of an evaluation and its continuation.
_MAY_DIFFER = ("commit", "versions", "run", "created", "cases", "unscored", "seconds")


def _open_folder(folder: Path, facts: dict[str, Any]) -> None:
    """Start a folder of rows, or make sure that the rows in it were made in the same way."""
    file = folder / "protocol.json"
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
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
        return
    runs.write_text(file, json.dumps(facts | {"created": time.strftime("%FT%T")}, indent=2) + "\n")


def _finish(folder: Path, data: Any, part: str, facts: dict[str, Any]) -> None:
    """Join the rows of all cases, each exactly once, into table, summary and report."""
    names = sorted(getattr(data.split, part))
    missing = [name for name in names if not _rows_file(folder, name).exists()]
    if missing:
        raise UserError(
            f"{len(missing)} cases were not evaluated, {missing[0]} first; run it again"
        )
    tables = [read_rows(_rows_file(folder, name)) for name in names]
    empty = [name for name, table in zip(names, tables, strict=True) if table.empty]
    unscored = [name for name in empty if not data.cases[name].is_labelled]
    unshown = [name for name in empty if name not in unscored]
    if unshown:
        console.print(f"[yellow]these cases have none of the subsets: {', '.join(unshown)}[/]")
    if unscored:
        console.print(
            f"[yellow]not scored, because there is no label: {', '.join(unscored)}; "
            f"their label maps are in {folder / 'predictions'}[/]"
        )
    scored = [table for table in tables if not table.empty]
    if not scored:
        raise UserError(
            f"none of the {len(names)} cases has a label and one of the subsets, so there is "
            "nothing to score"
        )
    rows = pd.concat(scored, ignore_index=True)
    facts = json.loads((folder / "protocol.json").read_text(encoding="utf-8"))
    facts |= {"cases": len(scored), "unscored": unscored}
    runs.write_text(folder / "protocol.json", json.dumps(facts, indent=2) + "\n")
    runs.write_text(folder / "cases.csv", rows.to_csv(index=False))
    write_report(folder)
    # About a megabyte a case; the report shows a dozen.
    keep_slices(folder, choose_cases(EvaluationTable.read(folder)))
