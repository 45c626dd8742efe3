"""What `bts train` does: build everything from the configuration and fit, or go on with a run."""

import errno
import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer, seed_everything
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint, ModelSummary, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from bts_lightning import runs
from bts_lightning.callbacks.epoch_lines import EpochLines
from bts_lightning.callbacks.exact_curves import CURVES, ExactCurves
from bts_lightning.callbacks.own_files import OwnFiles
from bts_lightning.callbacks.preemption import PreemptedError, Preemption
from bts_lightning.callbacks.provenance import Provenance
from bts_lightning.callbacks.same_optimizer import SameOptimizer
from bts_lightning.config import build
from bts_lightning.config.merge import one_line
from bts_lightning.config.schema import signature
from bts_lightning.errors import ConfigError, EveryRankError, UserError
from bts_lightning.files import clear_unfinished
from bts_lightning.loggers import Csv, read_metrics, report_failure
from bts_lightning.memory import advise_on_memory, is_out_of_memory, keep_freed_memory
from bts_lightning.report.screen import Screen
from bts_lightning.runs.checkpoints import (
    WholeCheckpoints,
    check_resumable,
    is_of_the_checkpoint,
    load_weights,
    read_checkpoint,
)
from bts_lightning.runs.devices import check_accelerator
from bts_lightning.runs.limits import check_devices, check_load, within_memory
from bts_lightning.runs.lock import only_one
from bts_lightning.runs.opening import check_scheme
from bts_lightning.runs.quiet import hush
from bts_lightning.runs.ranks import together
from bts_lightning.task import SegmentationTask

# What checkpoints, sweeps and studies watch.
MONITORED = "val/dice/mean"
console = Screen()


def fit(run: Path, config: DictConfig, nodes: Mapping[str, Any]) -> None:
    """Train in a run folder, from its newest readable checkpoint if there is one.

    Args:
        run: the folder.
        config: the merged experiment, which is kept with the run.
        nodes: what it says, checked.
    """
    os.environ[runs.RUN_VARIABLE] = str(run.resolve())
    runs.refuse_strangers(run)
    try:
        _fit(run, config, nodes)
    except UserError as error:
        # A training that was stopped has not failed: a sweep stops those that fall behind.
        if not isinstance(error.__cause__, PreemptedError):
            report_failure()
        # What all of them stop for, the first one tells.
        if not isinstance(error, EveryRankError) or getattr(rank_zero_only, "rank", 0) == 0:
            raise


def _fit(run: Path, config: DictConfig, nodes: Mapping[str, Any]) -> None:
    hush()
    keep_freed_memory()
    seed_everything(nodes["seed"], workers=True, verbose=False)
    data = build(nodes["data"])
    check_load(data)
    build(nodes["evaluation"])  # refuses what the first validation would stumble over
    with within_memory("net"):
        task: SegmentationTask = build(nodes["task"])
    task.prepare_fit()
    check_scheme(task, data)
    _check_patch(task, data)
    trainer = _trainer(run, config, nodes)
    with (
        only_one(run, "training") if trainer.is_global_zero else nullcontext(),
        together(trainer, f"continue with: bts train {run}"),
    ):
        _fit_alone(run, config, task, data, trainer)


def _fit_alone(
    run: Path, config: DictConfig, task: SegmentationTask, data: Any, trainer: Trainer
) -> None:
    """Do all that writes into the run."""
    for logger in trainer.loggers:
        logger.log_hyperparams(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
    resume, content = _newest_readable(run)
    if resume:
        load_weights(task, content, resume)  # refuses a checkpoint of another network
    _rewind(trainer, _batches(content) if resume else 0, content.get(CURVES))
    content.clear()  # Lightning reads it again; weights and optimizer would stay in memory twice
    if trainer.is_global_zero:
        runs.save_config(run, config)
        clear_unfinished(run / "checkpoints")
        console.print(f"run     {run}" + (f", going on from {resume.name}" if resume else ""))
    try:
        trainer.fit(task, datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
    except MisconfigurationException as error:
        raise ConfigError(one_line(error)) from error
    except (RuntimeError, MemoryError) as error:
        if resume and is_of_the_checkpoint(error):
            raise UserError(_misfit(resume, error)) from error
        if str(error).startswith("Early stopping conditioned on metric"):
            raise ConfigError(one_line(error)) from error
        if not is_out_of_memory(error):
            raise
        raise UserError(advise_on_memory(config)) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"no space left on the disk of {run}; free some, then continue with: bts train {run}"
        ) from error
    except PreemptedError as stop:
        raise EveryRankError(f"{stop}; continue with: bts train {run}") from stop
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        if not resume or not is_of_the_checkpoint(error):
            raise
        raise UserError(_misfit(resume, error)) from error
    if trainer.is_global_zero:
        then = f"\nnext    bts evaluate {run}" if task.segments else ""
        console.print(f"done    {_summary(trainer)}{then}")


def _trainer(run: Path, config: DictConfig, nodes: Mapping[str, Any]) -> Trainer:
    """Build the trainer, with callbacks and loggers that write into the run."""
    given = nodes["trainer"].arguments
    check_accelerator(given.get("accelerator"), "trainer.accelerator")
    check_devices(given)
    callbacks: list[Callback] = [
        Provenance(run, config),
        OwnFiles(),
        SameOptimizer(),
        ExactCurves(),
    ]
    for node in nodes["callbacks"].values():
        takes = signature(node.cls).arguments
        place = {"dirpath": str(run / "checkpoints")} if "dirpath" in takes else {}
        callbacks.append(build(node, **place))
    loggers: list[Logger] = [
        build(node, save_dir=str(run / "logs")) for node in nodes["logger"].values()
    ]
    # A terminal gets bars, a file one line an epoch.
    is_terminal = console.is_terminal
    if not is_terminal:
        callbacks = [c for c in callbacks if not isinstance(c, ProgressBar | ModelSummary)]
    has_bar = any(isinstance(c, ProgressBar) for c in callbacks)
    if not has_bar:
        callbacks.append(EpochLines())
    # Last, so that its checkpoint holds what the others did after the step (averaged weights).
    callbacks.sort(key=lambda callback: isinstance(callback, Preemption))
    trainer: Trainer = build(
        nodes["trainer"],
        default_root_dir=str(run),
        plugins=[WholeCheckpoints(), *build(given.get("plugins") or [])],
        callbacks=callbacks,
        logger=loggers,
        enable_progress_bar=has_bar,
        enable_model_summary=is_terminal,
    )
    return trainer


def _check_patch(task: SegmentationTask, data: Any) -> None:
    """Refuse a patch that the network cannot halve, or of which the last halving leaves a voxel."""
    patch = tuple(getattr(data, "patch", ()))
    if not patch:
        return
    try:
        task.net.check_size(patch)
    except ValueError as error:
        raise ConfigError(f"data.patch: {error}") from error
    name, least = type(task.net).__name__, max(task.net.divisors)
    if patch == task.net.divisors and least > 1:
        raise ConfigError(
            f"data.patch is {least}, of which {name} leaves one voxel after its last halving; that "
            f"cannot be normalised, so give {2 * least} or halve less often"
        )


def _newest_readable(run: Path) -> tuple[Path | None, dict[str, Any]]:
    """Choose the checkpoint to go on from; one that cannot be read is named and passed over."""
    candidates = runs.checkpoint_files(run)
    for i, file in enumerate(candidates, start=1):
        try:
            content = read_checkpoint(file)
            check_resumable(content, file)
            return (None, {}) if _is_first_of_two(file, content) else (file, content)
        except UserError as error:
            if i == len(candidates):
                raise UserError(f"{error}; delete {file.parent} to begin again") from error
            console.print(f"{error}; trying the one before it", style="yellow")
    return None, {}


def _misfit(file: Path, error: Exception) -> str:
    return (
        f"{file} does not fit this training ({type(error).__name__}: {one_line(error)}); go on "
        "with the experiment that it was saved by"
    )


def _is_first_of_two(file: Path, checkpoint: dict[str, Any]) -> bool:
    """Say whether a kill fell between the checkpoints of the first epoch, which is then repeated.

    The best one is the first of them, and says that the other was never written; going on from it,
    nobody would write it any more.
    """
    states = [s for s in checkpoint.get("callbacks", {}).values() if isinstance(s, dict)]
    written = {bool(s["best_k_models"]) for s in states if "best_k_models" in s}
    if file.stem != "best" or written != {True, False}:
        return False
    rows = file.parents[1] / "logs" / "metrics.csv"
    curves = read_metrics(rows) if rows.exists() else {}
    last = max((step for curve in curves.values() for step, _ in curve), default=0)
    return last < _batches(checkpoint)


def _batches(checkpoint: dict[str, Any]) -> int:
    """Count the batches that were learned from; each of several optimizers steps at every one."""
    # Lightning's own count of batches is one behind in a state that was saved between two steps.
    return int(checkpoint["global_step"]) // max(1, len(checkpoint.get("optimizer_states", ())))


def _rewind(trainer: Trainer, step: int, seals: object) -> None:
    """Let the curves go back to where the training goes on."""
    for logger in trainer.loggers:
        if isinstance(logger, Csv):
            seal = seals.get(logger.file.name) if isinstance(seals, dict) else None
            logger.rewind(step, seal)


def _summary(trainer: Trainer) -> str:
    best = [
        checkpoint.best_model_score
        for checkpoint in trainer.checkpoint_callbacks
        if isinstance(checkpoint, ModelCheckpoint) and checkpoint.monitor == MONITORED
    ]
    if not best or best[0] is None:
        return f"{trainer.global_step} steps, no validation yet"
    text = f"mean Dice {float(best[0]):.4f} at best"
    # A training that had been finished before validates nothing now.
    last = trainer.callback_metrics.get(MONITORED)
    return text if last is None else f"{text}, {float(last):.4f} at the end"
