"""Checkpoint files that appear whole or not at all, on any disk."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import nn

from bts_lightning.config.merge import one_line
from bts_lightning.errors import UserError
from bts_lightning.files import whole

ALMOST_NOTHING = 2**20  # bytes


class WholeCheckpoints(TorchCheckpointIO):
    """Write beside the place and rename.

    Lightning writes to the system's folder for temporary files and moves the result: to another
    disk that is a copy, and one that fills up on the way leaves half a file.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Save to disk, so that a crash of the machine does not take it back."""
        place = Path(path)
        with whole(place, lasting=True) as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:
                # torch tells of a position in the file where the disk has told it that it is full;
                # to be asked here, for what was written is gone after the block.
                if shutil.disk_usage(place.parent).free < ALMOST_NOTHING:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(place)) from error
                raise

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read one, also of a run that was moved.

        Lightning forgets which score was the best when a checkpoint names another folder than its
        own, and the next validation would overwrite `best.ckpt` whatever it gives.
        """
        checkpoint = super().load_checkpoint(path, *args, **kwargs)
        folder = os.path.realpath(Path(path).parent)
        for key, state in checkpoint.get("callbacks", {}).items():
            if isinstance(state, dict) and "best_k_models" in state:
                checkpoint["callbacks"][key] = _moved(state, state["dirpath"], folder)
        return checkpoint


def _moved(value: Any, old: str, new: str) -> Any:
    """Give the state of a `ModelCheckpoint` with all its paths in another folder."""
    if isinstance(value, dict):
        return {_moved(name, old, new): _moved(item, old, new) for name, item in value.items()}
    if isinstance(value, str) and Path(value).is_relative_to(old):
        return str(Path(new) / Path(value).relative_to(old))
    return value


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Read a checkpoint of tensors and plain values; a broken or foreign one is named."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"there is no checkpoint {file}") from error
    except Exception as error:
        raise UserError(
            f"{file} cannot be read ({one_line(error).partition('. ')[0]}); truncated?"
        ) from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise UserError(f"{file} is not a checkpoint of a training: it has no state_dict")
    return content


def load_weights(task: nn.Module, checkpoint: dict[str, Any], file: Path) -> None:
    """Load weights into a task that was built for them, or say in one line that it was not."""
    try:
        task.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip(" \t.")
        reason = reason if len(reason) < 250 else f"{reason[:200]} …"
        raise UserError(
            f"{file} was trained with another network than this configuration builds ({reason}); "
            "use the config.yaml that stands with it"
        ) from error
