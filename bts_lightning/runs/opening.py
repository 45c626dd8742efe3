"""Open a run: its configuration and its trained task."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from bts_lightning import config as configuration
from bts_lightning import runs
from bts_lightning.errors import ConfigError, UserError

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


@dataclass(frozen=True)
class OpenRun:
    """A run whose configuration was read and checked, and the weights that are taken of it.

    Attributes:
        nodes: what the configuration says, to build from.
    """

    run: Path
    config: DictConfig
    nodes: dict[str, Any]
    checkpoint: Path

    @property
    def experiment(self) -> str:
        """Name the experiment, after which the folder above is called."""
        return self.run.resolve().parent.name


def open_runs(
    folders: Path | Sequence[Path],
    words: Sequence[str] = (),
    allow: Sequence[str] = (),
    checkpoint: Path | None = None,
) -> list[OpenRun]:
    """Open one run, or the runs of an ensemble; the first half of what every verb does with runs.

    It finds what is wrong with what was typed, and loads no weights. `runs.ensemble.load_ensemble`
    is the other half: it takes this list and gives the one thing that segments, or refuses runs
    that cannot be averaged. To hand on an ensemble is to hand on these folders and `words`.

    Args:
        folders: of the runs, each once; a package stands for the runs that it holds.
        words: overrides, for all of them.
        allow: packages that `_target_` may name beyond ours.
        checkpoint: another one than the best, of a single run.
    """
    given = [folders] if isinstance(folders, Path) else folders
    folders = [run for place in given for run in runs.find_runs(place)]
    places = [folder.resolve() for folder in folders]
    if twice := [folder for i, folder in enumerate(folders) if places[i] in places[:i]]:
        raise UserError(f"{twice[0]} is given twice; an ensemble has each run once")
    if checkpoint and len(folders) > 1:
        raise UserError(
            f"--checkpoint {checkpoint}: of {len(folders)} runs each has its own; leave it out, or "
            "give one run"
        )
    return [
        OpenRun(run, *open_run(run, words, allow), checkpoint or runs.best_checkpoint(run))
        for run in folders
    ]


def recipe_of(run: Path, data: Any) -> Any:
    """Give how the data module of a run prepares images; images of others are prepared so too."""
    if (recipe := getattr(data, "recipe", None)) is None:
        raise ConfigError(
            f"{run}: {type(data).__name__} does not say how it prepares images (it has no "
            "`recipe`), so no others can be; give it one, as "
            "bts_lightning.data.cache.normalise.Recipe()"
        )
    return recipe


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
    if not task.segments:
        raise UserError(
            f"{checkpoint} is of a first stage, which segments nothing; train the second one from "
            "its run, with task.pretraining=RUN"
        )
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
