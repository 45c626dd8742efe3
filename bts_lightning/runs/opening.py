"""Open a run: its configuration and its trained task."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from bts_lightning import config as configuration
from bts_lightning import runs
from bts_lightning.errors import ConfigError

if TYPE_CHECKING:
    from bts_lightning.task import SegmentationTask


def load_run(run: Path, words: Sequence[str] = (), allow: Sequence[str] = ()) -> DictConfig:
    """Read the configuration that a run was trained with, and override it."""
    return open_run(run, words, allow)[0]


def open_run(
    run: Path, words: Sequence[str] = (), allow: Sequence[str] = ()
) -> tuple[DictConfig, dict[str, Any]]:
    """Read the configuration of a run; give what it says, checked, as well."""
    tell_if_edited(run)
    config = configuration.load([str(runs.config_file(run)), *words], allow=allow)
    nodes = configuration.check(config, supplied=configuration.SUPPLIED)
    if nodes["evaluation"] is None:
        raise ConfigError(
            "evaluation is null, so nothing says how cases are segmented; give it, as "
            "evaluation._target_=bts_lightning.inference.Protocol"
        )
    return config, nodes


def tell_if_edited(run: Path) -> None:
    """Say that a configuration is not the one that was trained: a changed letter may mean much."""
    if runs.was_edited(run):
        from bts_lightning.report.screen import Screen

        Screen(stderr=True).print(
            f"{runs.config_file(run)} was changed since the training wrote it", style="yellow"
        )


def load_task(config: "DictConfig | dict[str, Any]", checkpoint: Path) -> "SegmentationTask":
    """Build the task of a configuration, checked or not, with the weights of a checkpoint."""
    # Lightning is imported late: a run is opened to find mistakes in what was typed, too.
    from bts_lightning.runs.checkpoints import load_weights, read_checkpoint

    task: SegmentationTask = configuration.build(config["task"])
    load_weights(task, read_checkpoint(checkpoint), checkpoint)
    return task.eval()


def check_scheme(task: "SegmentationTask", data: Any) -> None:
    """Refuse a loss that reads other labels than the data have; a user's own data may not say."""
    recipe = getattr(data, "recipe", None)
    if recipe is not None and recipe.scheme != task.loss.scheme_name:
        raise ConfigError(
            f"data.scheme={recipe.scheme} and task.loss.scheme={task.loss.scheme_name} tell other "
            "tissues apart; give both the same, as the mix-ins cavity, ped and men_rt do"
        )
