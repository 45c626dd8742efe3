"""What a `ModelCheckpoint` knows and deletes after a resume: files of its own, and all of them."""

import re
from pathlib import Path
from string import Formatter
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

# As a metric is written, with any format.
_NUMBER = r"[-+]?(?:[\d.]+(?:e[-+]?\d+)?|inf|nan)"


class OwnFiles(Callback):
    """Let a checkpoint name no files for removal but those of its run, and none of them stay.

    A `ModelCheckpoint` removes what the checkpoint says that it once wrote: a file or a folder,
    wherever it lies. A checkpoint may come from anybody. What a kill kept it from removing, it
    does not know.
    """

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the score that Lightning saves and does not read."""
        for keeper in trainer.checkpoint_callbacks:
            state = checkpoint["callbacks"].get(keeper.state_key)
            if isinstance(keeper, ModelCheckpoint) and state:
                keeper.current_score = state.get("current_score")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look after the states were restored, in whatever way they came in."""
        for keeper in trainer.checkpoint_callbacks:
            if not isinstance(keeper, ModelCheckpoint):
                continue
            if foreign := _forget_foreign(keeper):
                more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
                rank_zero_info(
                    f"the checkpoint says that it has written {foreign[0]}{more}, which is no "
                    f"checkpoint of {trainer.default_root_dir}; left alone"
                )
            if trainer.is_global_zero:
                for file in _left_over(keeper):
                    file.unlink(missing_ok=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the file that it went on from be removed in its turn; Lightning would spare it."""
        trainer.ckpt_path = None


def _left_over(keeper: ModelCheckpoint) -> list[Path]:
    """List files of the callback that are older than all that it knows."""
    known = [Path(path) for path in keeper.best_k_models if Path(path).is_file()]
    if not known or keeper.save_top_k < 1:
        return []
    oldest = min(file.stat().st_mtime_ns for file in known)
    return [
        file
        for file in Path(str(keeper.dirpath)).iterdir()
        if _owns(keeper, str(file)) and file.is_file() and file.stat().st_mtime_ns < oldest
    ]


def _forget_foreign(keeper: ModelCheckpoint) -> list[str]:
    """Drop the paths that are not the callback's own, and give them."""
    last, template = keeper.last_model_path, keeper.CHECKPOINT_NAME_LAST
    foreign = [last] if last and not _owns(keeper, last, template) else []
    if foreign:
        keeper.last_model_path = ""
    scores = keeper.best_k_models
    named = [*scores, *filter(None, (keeper.kth_best_model_path, keeper.best_model_path))]
    if strangers := [path for path in named if not _owns(keeper, path)]:
        keeper.best_k_models = own = {p: scores[p] for p in scores if p not in strangers}
        ranked = sorted(own, key=lambda path: float(own[path]), reverse=keeper.mode == "max")
        keeper.best_model_path = ranked[0] if ranked else ""
        keeper.kth_best_model_path = ranked[-1] if ranked else ""
        keeper.best_model_score = own[ranked[0]] if ranked else None
        if ranked:
            keeper.kth_value = own[ranked[-1]]
    return list(dict.fromkeys([*foreign, *strangers]))


def _owns(keeper: ModelCheckpoint, path: str, template: str | None = None) -> bool:
    """Say whether a path lies directly in the callback's folder and has a name that it gives."""
    if Path(path).parent != Path(str(keeper.dirpath)):
        return False
    template = template or keeper.filename or "{epoch}" + keeper.CHECKPOINT_JOIN_CHAR + "{step}"
    pattern = ""
    for text, field, _, _ in Formatter().parse(template):
        pattern += re.escape(text)
        if field is not None:
            inserted = (
                field + keeper.CHECKPOINT_EQUALS_CHAR if keeper.auto_insert_metric_name else ""
            )
            pattern += re.escape(inserted) + _NUMBER
    version = rf"(?:{re.escape(keeper.CHECKPOINT_JOIN_CHAR)}v\d+)?"
    ending = re.escape(keeper.FILE_EXTENSION)
    return re.fullmatch(pattern + version + ending, Path(path).name) is not None
