"""Read the state of a network from a checkpoint of another program: its numbers, never its code."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
import torch
from torch import Tensor, nn

from bts_lightning.config.merge import one_line
from bts_lightning.errors import DataError, did_you_mean
from bts_lightning.files import NotAFileError, regular
from bts_lightning.networks.official.state import bare
from bts_lightning.runs.checkpoints import refuse_damage

# Under which of these keys a program keeps its state; without any the file is the state.
KEYS = ("state_dict", "model.state", "network_weights", "model_state_dict", "model")
# Scores that stand beside the state, as NumPy's numbers.
_NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")


def read_state(file: Path, parts: Sequence[str] = ()) -> dict[str, Tensor]:
    """Give parameters by their names, without what a wrapper puts before all of them.

    Args:
        parts: keys of the file whose states belong together; each name then begins with its key.
    """
    held = _read(file)
    if not isinstance(held, dict):
        raise DataError(
            f"{file} holds a {type(held).__name__}; a state_dict, or one in a dict, is due"
        )
    for part in parts:
        if not isinstance(held.get(part), dict):
            hint = did_you_mean(part, filter(lambda key: isinstance(key, str), held))
            raise DataError(f"{file} has no state under {part!r}; {hint}")
    if parts:
        return {f"{p}.{name}": x for p in parts for name, x in bare(_state(held[p], file)).items()}
    inner = next((held[key] for key in KEYS if isinstance(held.get(key), dict)), held)
    return bare(_state(inner, file))


def _read(file: Path) -> Any:
    try:
        with regular(file) as stream:
            refuse_damage(stream)
            is_new = is_zipfile(stream)
            stream.seek(0)
            with torch.serialization.safe_globals(_harmless()):
                # Mapped, no tensor reaches beyond the file, whatever size it says; the form of
                # PyTorch before 1.6 cannot be mapped, and says sizes twice. Only a name can be
                # mapped: that of what is open here, so that what was checked is what is read.
                opened = f"/dev/fd/{stream.fileno()}" if is_new else stream
                return torch.load(opened, map_location="cpu", weights_only=True, mmap=is_new)
    except FileNotFoundError as error:
        raise DataError(f"there is no checkpoint {file}") from error
    except NotAFileError as error:
        raise DataError(f"{file}: {error.strerror}, so no checkpoint") from error
    except Exception as error:
        if foreign := re.search(
            r"GLOBAL ([\w.]+)|instantiate unsupported class ([\w.]+)", str(error)
        ):
            raise DataError(
                f"{file} holds {foreign[1] or foreign[2]}, which is no number, so nothing in it "
                "was run; save the state alone where it was trained, with "
                "torch.save(model.state_dict(), FILE)"
            ) from error
        reason = one_line(error).partition(". ")[0][:200]
        raise DataError(f"{file} cannot be read ({reason or 'empty'}); truncated?") from error


def _state(held: dict[Any, Any], file: Path) -> dict[str, Tensor]:
    for name, value in held.items():
        if not isinstance(name, str):
            raise DataError(f"{file} is no state_dict: {str(name)[:80]} is no name")
        is_plain = type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided
        if not is_plain or value.device.type != "cpu":
            kind = type(value).__name__
            raise DataError(f"{file} is no state_dict: {name[:80]!r} is a {kind} without numbers")
    return {name: value.detach() for name, value in held.items()}


def _harmless() -> list[Any]:
    """List NumPy's numbers, under the names that its versions give to what makes them."""
    scalar: Any = np.float64(0).__reduce__()[0]
    made: list[tuple[Callable[..., Any], str]] = [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        (_number_type, "numpy.dtype"),
    ]
    return [*made, *(type(np.dtype(name)) for name in _NUMBERS)]


def _number_type(name: str, *_: object) -> np.dtype[Any]:
    """Stand in for `numpy.dtype`, which also makes texts and records of any size."""
    if name not in _NUMBERS:
        raise ValueError(f"{name!r} is no type of numbers")
    return np.dtype(name)
