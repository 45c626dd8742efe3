"""Run folders: where a training keeps its configuration, checkpoints, logs and evaluations."""

from bts_lightning.runs.folder import (
    OTHER_NAME,
    RUN_VARIABLE,
    RUNS,
    best_checkpoint,
    check_split,
    checkpoint_files,
    config_file,
    find_run,
    is_run,
    new_run,
    refuse_another,
    refuse_links,
    refuse_strangers,
    require_data,
    save_config,
    was_edited,
)

__all__ = [
    "OTHER_NAME",
    "RUNS",
    "RUN_VARIABLE",
    "best_checkpoint",
    "check_split",
    "checkpoint_files",
    "config_file",
    "find_run",
    "is_run",
    "new_run",
    "refuse_another",
    "refuse_links",
    "refuse_strangers",
    "require_data",
    "save_config",
    "was_edited",
]
