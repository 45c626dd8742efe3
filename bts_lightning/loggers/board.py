"""Weights & Biases: one run for a training and all that is made of it later."""

import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from bts_lightning.errors import DataError, UserError
from bts_lightning.files import content, expanded, write_whole
from bts_lightning.files import sha256 as digest_of
from bts_lightning.loggers.account import check_server, has_credentials
from bts_lightning.loggers.cells import cells_among, heat_map, table_of
from bts_lightning.loggers.curves import read_metrics

# Among the logs of a run: what it is called on the server.
IDENTITY = "wandb.json"
_NAME = re.compile(r"[\w.-]{1,128}")
# What W&B takes in the name of an artifact.
_NOT_IN_A_NAME = re.compile(r"[^\w.-]+", re.ASCII)
# Parts of the split whose names the curves of the training have taken.
_TAKEN = ("train", "val")


class Wandb(WandbLogger):
    """Weights & Biases, offline by itself when there are no credentials or no answer.

    Args:
        save_dir: the run's log folder. `wandb.json` in it keeps how the run is called, so that a
            resume or an evaluation goes on in it; a new run is called after its path.
        project: the W&B project; WANDB_PROJECT wins, as everywhere with wandb.
        panels: also draw a curve for each subset, metric and region. The table and the heat map of
            each validation hold the same numbers.
        checkpoints: `best` sends the best one as an artifact when the training is done, `all` each
            one when it is saved.
    """

    def __init__(
        self,
        *,
        save_dir: str,
        project: str = "bts_lightning",
        entity: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        panels: bool = False,
        checkpoints: Literal["best", "all"] | None = None,
    ) -> None:
        check_server()
        if not expanded("~").is_absolute():
            # Where a user has no home, wandb cannot even say where its settings would be.
            os.environ.setdefault("WANDB_CONFIG_DIR", str(Path(save_dir).resolve()))
        self.run = Path(save_dir).resolve().parent
        self._known: dict[str, str] | None = None
        self._scores: dict[str, float] = {}
        chosen: dict[str, Any] = {
            "id": hashlib.sha256(str(self.run).encode()).hexdigest()[:12],
            "project": os.environ.get("WANDB_PROJECT", project),
            "entity": entity,
        }
        super().__init__(
            name=f"{self.run.parent.name}/{self.run.name}",
            save_dir=save_dir,
            offline=not has_credentials() and os.environ.get("WANDB_MODE") != "disabled",
            resume="allow",
            group=group,
            tags=tags,
            **chosen,
        )
        self.panels, self.checkpoints = panels, checkpoints
        # The agent of a sweep has chosen these, and wandb complains when they are given again.
        self._in_sweep = "WANDB_SWEEP_ID" in os.environ
        if self._in_sweep:
            for part in ("id", "project", "entity"):
                self._wandb_init.pop(part)
            self._id = os.environ.get("WANDB_RUN_ID", self._id)
        # Lightning passes it on; wandb warns of it since 0.22.
        self._wandb_init.pop("anonymous", None)
        if self._offline:
            self._say_offline()

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Start the W&B run; a server that does not answer must not stop a training."""
        if self._experiment is not None or self._save_dir is None:
            return super().experiment
        Path(self._save_dir).mkdir(parents=True, exist_ok=True)
        import wandb
        from wandb.errors import CommError

        self._recall()
        try:
            return self._remembered(super().experiment)
        except CommError as error:
            said = " ".join(str(error).split())
            if self._in_sweep:
                raise UserError(f"the W&B server of the sweep does not answer: {said}") from error
            rank_zero_info(f"W&B does not answer ({said})")
        wandb.teardown()
        self._offline = True
        self._say_offline()
        return self._remembered(super().experiment)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log curves, and one table and one heat map for all cells of a validation."""
        shown = dict(metrics)
        if cells := cells_among(metrics):
            import wandb

            heads, rows = table_of(cells)
            if not self.panels:
                shown = {name: value for name, value in metrics.items() if name not in cells}
            shown["val/subsets"] = wandb.Table(columns=heads, data=rows)
            shown["val/heat_map"] = wandb.Image(heat_map(cells), caption="Dice (%)")
        super().log_metrics(shown, step)

    @rank_zero_only
    def use_data(self, fingerprint: str) -> None:
        """Say what the run has read: the first link of data, run and evaluation."""
        if self.experiment.disabled:
            return
        made = self._artifact(f"data-{fingerprint[:12]}", "dataset", {"fingerprint": fingerprint})
        # Nothing of the data; it names their content, so that the same data are one artifact.
        with made.new_file("data.json", encoding="utf-8") as file:
            json.dump({"fingerprint": fingerprint}, file)
        # `use_artifact` waits for the server, and refuses to work offline. What it calls does not.
        self.experiment._log_artifact(made, is_user_created=True, use_after_commit=True)

    @rank_zero_only
    def alert(self, text: str) -> None:
        """Tell whoever follows the run that it has stopped."""
        self.experiment.alert(f"{self.run.parent.name}: training stopped"[:64], text, "ERROR")

    @rank_zero_only
    def add_evaluation(
        self, folder: Path, rows: Any, means: Mapping[str, float], facts: Mapping[str, Any]
    ) -> None:
        """Add an evaluation to the run of the training.

        Args:
            folder: of the evaluation; its name comes before the names of the means.
            rows: its table.
            means: by metric and region, as `dice/ET`.
            facts: how it was made.
        """
        name = f"evaluation/{folder.name}"
        start = name if folder.name in _TAKEN else folder.name
        self.use_data(str(facts["data_fingerprint"]))
        file = self.run / "logs" / "metrics.csv"
        curves = read_metrics(file) if file.is_file() else {}
        self.log_table(
            name, dataframe=rows, step=max((c[-1][0] for c in curves.values()), default=None)
        )
        self._scores |= {f"{start}/{key}": mean for key, mean in means.items()}
        # Where offline parts of a run are synced, the summary of the last is that of the run.
        last = {key: curve[-1][1] for key, curve in curves.items()} if self._offline else {}
        hidden = {} if self.panels else cells_among(last)
        kept = {key: value for key, value in last.items() if key not in hidden}
        self.experiment.summary.update(kept | self._scores)
        self._write_identity(self.experiment)
        told = ("checkpoint", "checkpoint_sha256", "data_fingerprint", "split", "commit")
        made = self._artifact(
            f"evaluation-{self.experiment.id}-{folder.name}",
            "evaluation",
            {key: facts.get(key) for key in told},
        )
        for part in ("cases.csv", "protocol.json", "summary.md"):
            made.add_file(str(folder / part))
        self.experiment.log_artifact(made)
        self._end()

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Send each checkpoint, if all are wanted."""
        if self.checkpoints == "all":
            self._scan_and_log_checkpoints(checkpoint_callback)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Send the best checkpoint, and end: the next training of the process has its own run."""
        if status != "success" or self._experiment is None:
            return
        best = self.run / "checkpoints" / "best.ckpt"
        # Whoever wrote it: after a resume no better one may have come.
        if self.checkpoints == "best" and best.is_file():
            facts = {"checkpoint": best.name, "checkpoint_sha256": digest_of(best)}
            model = self._artifact(f"model-{self.experiment.id}", "model", facts)
            # Under the name that Lightning gives.
            model.add_file(str(best), "model.ckpt")
            self.experiment.log_artifact(model, aliases=["best"])
        self._end()

    def _end(self) -> None:
        self.experiment.finish()
        self._experiment = None

    def _recall(self) -> None:
        """Go on in the run that the folder names; the agent of a sweep has chosen one itself."""
        if self._known is not None:
            return
        self._known, self._scores = _read_identity(Path(str(self._save_dir)) / IDENTITY)
        if not self._in_sweep:
            self._wandb_init.update(self._known)
            self._id = self._wandb_init["id"]

    def _remembered(self, run: Any) -> Any:
        """Keep how the run is called."""
        found = {"id": run.id, "project": run.project, "entity": run.entity}
        # Offline nobody knows whose run it will be.
        known = self._known or {}
        self._known = {key: value for key, value in found.items() if value} | known
        self._write_identity(run)
        return run

    def _write_identity(self, run: Any) -> None:
        if run.disabled:
            return
        kept = (self._known or {}) | ({"scores": self._scores} if self._scores else {})
        write_whole(Path(str(self._save_dir)) / IDENTITY, json.dumps(kept, indent=1) + "\n")

    def _artifact(self, name: str, kind: str, facts: Mapping[str, Any]) -> Any:
        import wandb

        return wandb.Artifact(_NOT_IN_A_NAME.sub("_", name)[:128], kind, metadata=dict(facts))

    def _say_offline(self) -> None:
        rank_zero_info(f"W&B is offline; later: wandb sync {self._save_dir}/wandb/offline-run-*")


def report_failure() -> None:
    """Tell W&B that the run failed; of an error that becomes one line it would not learn."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and getattr(wandb, "run", None) is not None:
        wandb.finish(exit_code=1)


def _read_identity(file: Path) -> tuple[dict[str, str], dict[str, float]]:
    """Read how a run is called on the server, and its scores; nothing before it was there."""
    if not os.path.lexists(file):
        return {}, {}
    try:
        told = dict(json.loads(content(file)))
        scores = {str(key): float(value) for key, value in told.pop("scores", {}).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: {error}; delete it, and W&B begins a new run") from error
    if not {"id"} <= told.keys() <= {"id", "project", "entity"} or not all(
        isinstance(value, str) and _NAME.fullmatch(value) for value in told.values()
    ):
        raise DataError(f"{file}: it names no run of W&B; delete it, and W&B begins a new run")
    return told, scores
