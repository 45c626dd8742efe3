"""`bts train`: build everything from the configuration and fit, or go on with a run."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer, seed_everything
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint, ModelSummary, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from bts_lightning import config as configuration
from bts_lightning import runs
from bts_lightning.callbacks.epoch_lines import EpochLines
from bts_lightning.callbacks.preemption import PreemptedError, Preemption
from bts_lightning.callbacks.provenance import Provenance
from bts_lightning.config.merge import one_line
from bts_lightning.config.schema import signature
from bts_lightning.config.targets import find_class
from bts_lightning.errors import ConfigError, EveryRankError, UserError
from bts_lightning.loggers import Csv, report_failure
from bts_lightning.memory import advise_on_memory, is_out_of_memory, keep_freed_memory
from bts_lightning.runs.checkpoints import (
    WholeCheckpoints,
    clear_unfinished,
    load_weights,
    read_checkpoint,
)
from bts_lightning.runs.devices import check_accelerator
from bts_lightning.runs.processes import end_with_parent
from bts_lightning.runs.quiet import hush
from bts_lightning.task import SegmentationTask

# What checkpoints, sweeps and studies watch.
MONITORED = "val/dice/mean"
# Arguments of the trainer that are filled in when a run begins.
SET_ELSEWHERE = {
    "callbacks": "name each in the section callbacks",
    "logger": "name each in the section logger, or take one out: logger.wandb=null",
    "default_root_dir": f"set {runs.RUN_VARIABLE}=FOLDER in the environment",
    "enable_progress_bar": "take the bar out: callbacks.progress=null",
    "enable_model_summary": "there is one in a terminal only",
}
console = Console(highlight=False, soft_wrap=True)


def train(words: Sequence[str], allow: Sequence[str] = ()) -> int:
    """Train the experiment that the words describe, or continue the run that they name."""
    told = os.environ.get(runs.RUN_VARIABLE)
    try:
        run, config = _open(words, allow)
        fit(config, run)
    except UserError as error:
        # A training that was stopped has not failed: a sweep stops those that fall behind.
        if not isinstance(error.__cause__, PreemptedError):
            report_failure()
        # Lightning kills the first process as soon as another one has failed.
        if isinstance(error, EveryRankError) and getattr(rank_zero_only, "rank", 0) != 0:
            return 0
        raise
    finally:
        # It is for the processes of this training; the next one, in a notebook, has its own run.
        if told is None:
            os.environ.pop(runs.RUN_VARIABLE, None)
    return 0


def fit(config: DictConfig, run: Path) -> dict[str, float]:
    """Train in a run folder, from its newest readable checkpoint if there is one."""
    os.environ[runs.RUN_VARIABLE] = str(run.resolve())
    hush()
    _check_values(config)
    keep_freed_memory()
    seed_everything(config.seed, workers=True, verbose=False)
    resume, content = _newest_readable(run)
    data = configuration.build(config.data)
    task: SegmentationTask = configuration.build(config.task)
    task.prepare_fit()
    _check_patch(task, data)
    trainer = _trainer(config, run)
    if resume:
        load_weights(task, content, resume)  # refuses a checkpoint of another network
    _rewind(trainer, _batches(content) if resume else 0)
    content.clear()  # Lightning reads it again; weights and optimizer would stay in memory twice
    if trainer.is_global_zero:
        runs.save_config(run, config)
        clear_unfinished(run / "checkpoints")
        console.print(f"run     {run}" + (f", going on from {resume.name}" if resume else ""))
    else:
        end_with_parent()
    try:
        trainer.fit(task, datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
    except MisconfigurationException as error:
        raise ConfigError(one_line(error)) from error
    except (RuntimeError, MemoryError) as error:
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
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    if trainer.is_global_zero:
        console.print(f"done    {_summary(trainer, metrics)}\nnext    bts evaluate {run}")
    return metrics


def _open(words: Sequence[str], allow: Sequence[str]) -> tuple[Path, DictConfig]:
    """Tell a run to resume from an experiment to start."""
    folders = [word for word in words if "=" not in word and runs.is_run(Path(word))]
    if len(folders) > 1:
        raise UserError(f"{folders[0]} and {folders[1]} are both runs; continue one at a time")
    if folders:
        words = [str(runs.config_file(Path(w))) if w in folders else w for w in words]
    config = configuration.load(words, allow=allow)
    configuration.check(config, supplied=configuration.SUPPLIED)
    runs.require_data(config)
    if folders:
        return Path(folders[0]), config
    names = [Path(word).stem for word in words if "=" not in word]
    told = runs.RUN_VARIABLE in os.environ
    run = runs.new_run("+".join(names) or "base")
    # A job that was requeued says what it said before, but for what has been mended.
    if not told and not int(os.environ.get("SLURM_RESTART_COUNT", 0)):
        advice = (
            f"it belongs to this job: give each training of a job a folder, as "
            f"{runs.RUN_VARIABLE}={run}-2, or go on with that one: bts train {run}"
        )
        tree = OmegaConf.to_container(config, resolve=False)
        runs.refuse_another(runs.config_file(run), tree, advice)
    return run, config


def _trainer(config: DictConfig, run: Path) -> Trainer:
    """Build the trainer, with callbacks and loggers that write into the run."""
    for name, instead in SET_ELSEWHERE.items():
        if name in config.trainer:
            raise ConfigError(f"trainer.{name} has no effect here; {instead}")
    check_accelerator(config.trainer.get("accelerator"), "trainer.accelerator")
    callbacks: list[Callback] = [Provenance(run, config)]
    for name, node in (config.callbacks or {}).items():
        takes = signature(find_class(node._target_, f"callbacks.{name}")).arguments
        place = {"dirpath": str(run / "checkpoints")} if "dirpath" in takes else {}
        callbacks.append(configuration.build(node, **place))
    loggers: list[Logger] = [
        configuration.build(node, save_dir=str(run / "logs"))
        for node in (config.logger or {}).values()
    ]
    for logger in loggers:
        logger.log_hyperparams(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
    # A terminal gets bars, a file one line an epoch.
    is_terminal = console.is_terminal
    if not is_terminal:
        callbacks = [c for c in callbacks if not isinstance(c, ProgressBar | ModelSummary)]
    has_bar = any(isinstance(c, ProgressBar) for c in callbacks)
    if not has_bar:
        callbacks.append(EpochLines())
    # Last, so that its checkpoint holds what the others did after the step (averaged weights).
    callbacks.sort(key=lambda callback: isinstance(callback, Preemption))
    trainer: Trainer = configuration.build(
        config.trainer,
        default_root_dir=str(run),
        plugins=[WholeCheckpoints(), *configuration.build(config.trainer.get("plugins") or [])],
        callbacks=callbacks,
        logger=loggers,
        enable_progress_bar=has_bar,
        enable_model_summary=is_terminal,
    )
    return trainer


def _check_values(config: DictConfig) -> None:
    """Refuse values that Lightning takes, and over which the training stumbles later."""
    least = {"seed": 0, "trainer.accumulate_grad_batches": 1, "trainer.check_val_every_n_epoch": 1}
    for key, lowest in least.items():
        value = OmegaConf.select(config, key)
        if value is not None and value < lowest:
            raise ConfigError(f"{key} is {value}; the smallest is {lowest}")
    precision = str(config.trainer.get("precision"))
    if precision in ("bf16-true", "16-true", "64-true", "64"):
        raise ConfigError(
            f"trainer.precision is {precision}; images and losses are in single precision here, so "
            "take bf16-mixed, 16-mixed or 32-true"
        )


def _check_patch(task: SegmentationTask, data: Any) -> None:
    """Refuse a patch that the network cannot halve, or of which the last halving leaves a voxel."""
    patch = tuple(getattr(data, "patch", ()))
    if not patch:
        return
    try:
        task.net.check_size(patch)
    except ValueError as error:
        raise ConfigError(f"data.patch: {error}") from error
    name, least = type(task.net).__name__, task.net.divisor
    if 1 < max(patch) == least:
        raise ConfigError(
            f"data.patch is {least}, of which {name} leaves one voxel after its last halving; that "
            f"cannot be normalised, so give {2 * least} or halve less often"
        )


def _newest_readable(run: Path) -> tuple[Path | None, dict[str, Any]]:
    """Choose the checkpoint to go on from; one that cannot be read is named and passed over."""
    candidates = runs.checkpoint_files(run)
    for file in candidates:
        try:
            return file, read_checkpoint(file)
        except UserError as error:
            console.print(f"{error}; trying the one before it", style="yellow", markup=False)
    if candidates:
        raise UserError(f"none of the checkpoints in {candidates[0].parent} can be read")
    return None, {}


def _batches(checkpoint: dict[str, Any]) -> int:
    """Count the batches that were learned from; several optimizers take more steps than that."""
    return int(checkpoint["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"])


def _rewind(trainer: Trainer, step: int) -> None:
    """Let the curves go back to where the training goes on."""
    for logger in trainer.loggers:
        if isinstance(logger, Csv):
            logger.rewind(step)


def _summary(trainer: Trainer, metrics: dict[str, float]) -> str:
    best = [
        checkpoint.best_model_score
        for checkpoint in trainer.checkpoint_callbacks
        if isinstance(checkpoint, ModelCheckpoint) and checkpoint.monitor == MONITORED
    ]
    if not best or best[0] is None:
        return f"{trainer.global_step} steps, no validation yet"
    text = f"mean Dice {float(best[0]):.4f} at best"
    # A training that had been finished before validates nothing now.
    return text + (f", {metrics[MONITORED]:.4f} at the end" if MONITORED in metrics else "")
