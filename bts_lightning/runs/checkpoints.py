"""Checkpoint files that appear whole or not at all, on any disk."""

import errno
import os
import shutil
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from safetensors.torch import load, save
from torch import Tensor, nn

from bts_lightning.config.merge import one_line
from bts_lightning.errors import UserError
from bts_lightning.files import NotAFileError, checksum, regular, whole
from bts_lightning.runs.container import WEIGHTS, checked

ALMOST_NOTHING = 2**20  # bytes

# What a training goes on from, by the kind that Lightning saves.
_STATE: dict[str, type] = {
    "global_step": int,
    "epoch": int,
    "loops": dict,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "pytorch-lightning_version": str,
}
# The same of a `ModelCheckpoint`, which compares and removes later what it is given here.
_KEEPER: dict[str, type] = {
    "best_k_models": dict,
    "kth_value": Tensor,
    "dirpath": str,
    "best_model_path": str,
    "kth_best_model_path": str,
    "last_model_path": str,
}
_SEAL = "checksum"
# Functions that take over what a checkpoint holds.
_TAKING = ("load_state_dict", "on_load_checkpoint", "_load_combined_loader_states")


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
                torch.save({**checkpoint, _SEAL: _checksum(checkpoint)}, file)
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
        checkpoint = read_checkpoint(Path(path))
        folder = os.path.realpath(Path(path).parent)
        for key, state in _keepers(checkpoint):
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
        if file.suffix == Path(WEIGHTS).suffix:
            content: Any = {"state_dict": load(checked(file))}
        else:
            with regular(file) as stream:
                refuse_damage(stream)
                content = torch.load(stream, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"there is no checkpoint {file}") from error
    except NotAFileError as error:
        raise UserError(f"{file}: {error.strerror}, so no checkpoint") from error
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{file} cannot be read ({one_line(error).partition('. ')[0] or 'empty'}); truncated?"
        ) from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise UserError(f"{file} is not a checkpoint of a training: it has no state_dict")
    weights = content["state_dict"]
    is_whole = isinstance(weights, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
    )
    if not is_whole:
        raise UserError(f"{file} is not a checkpoint of a training: its state_dict is no weights")
    # Checkpoints from before, and those of other programs, have none.
    seal = content.pop(_SEAL, None)
    if seal is not None and seal != _checksum(content):
        raise UserError(
            f"{file} was changed after it was saved; if it was you, take out its {_SEAL!r}"
        )
    return content


def weights_alone(checkpoint: dict[str, Any]) -> bytes:
    """Write the weights of a checkpoint as safetensors, which `read_checkpoint` reads too."""
    # Copies, because the format takes no two tensors of one memory, and no strides.
    plain = torch.contiguous_format
    return save({k: v.clone(memory_format=plain) for k, v in checkpoint["state_dict"].items()})


def _checksum(checkpoint: dict[str, Any]) -> str:
    """Give a digest of all but the numbers of tensors, which have checksums in the file."""
    return checksum(repr(_plain(checkpoint)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return [(name, _plain(item)) for name, item in value.items()]
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return (value.shape, value.dtype) if isinstance(value, Tensor) else value


def refuse_damage(stream: IO[bytes]) -> None:
    """Hold what is in the file against its checksums, which torch writes and does not read."""
    if is_zipfile(stream):
        with ZipFile(stream) as archive:
            # torch packs nothing: what is larger unpacked was made to fill a memory.
            if sum(part.file_size for part in archive.infolist()) > stream.seek(0, os.SEEK_END):
                raise BadZipFile("its parts are larger than the file")
            if broken := archive.testzip():
                raise BadZipFile(f"{broken} is damaged")
    stream.seek(0)


def check_resumable(checkpoint: dict[str, Any], file: Path) -> None:
    """Refuse a checkpoint that a training cannot go on from, as one that holds weights alone."""
    places = [(checkpoint, _STATE, "")]
    places += [(state, _KEEPER, f"callbacks.{key}.") for key, state in _keepers(checkpoint)]
    faults = [
        f"no {where}{key}" if key not in holder else f"a {type(holder[key]).__name__} as {key}"
        for holder, kinds, where in places
        for key, kind in kinds.items()
        if not isinstance(holder.get(key), kind)
    ]
    if not faults and (checkpoint["global_step"] < 0 or not checkpoint["optimizer_states"]):
        faults = ["no optimizer" if checkpoint["global_step"] >= 0 else "a negative global_step"]
    if faults:
        raise UserError(
            f"{file} holds {faults[0]}, so no training can go on from it; evaluate it with "
            f"--checkpoint {file}"
        )


def _keepers(checkpoint: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the states of each `ModelCheckpoint`."""
    callbacks = checkpoint.get("callbacks")
    for key, state in list(callbacks.items()) if isinstance(callbacks, dict) else ():
        if isinstance(state, dict) and "best_k_models" in state:
            yield key, state


def is_of_the_checkpoint(error: Exception) -> bool:
    """Say whether an error arose where a training takes over what a checkpoint holds."""
    return any(
        frame.name in _TAKING or Path(frame.filename).name == "checkpoint_connector.py"
        for frame in traceback.extract_tb(error.__traceback__)
    )


def load_weights(task: nn.Module, checkpoint: dict[str, Any], file: Path) -> None:
    """Load weights into a task that was built for them, or say in one line that it was not."""
    try:
        task.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        reason = (str(error).splitlines()[1:] or [str(error)])[0].strip(" \t.")
        reason = reason if len(reason) < 250 else f"{reason[:200]} …"
        raise UserError(
            f"{file} was trained with another network than this configuration builds ({reason}); "
            "use the config.yaml that stands with it"
        ) from error
