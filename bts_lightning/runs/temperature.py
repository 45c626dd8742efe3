"""The temperature that was fitted to a run, kept with it."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bts_lightning.errors import UserError
from bts_lightning.files import checksum, content, sha256, write_whole
from bts_lightning.inference import Protocol

_SEAL = "checksum"


def keep_temperature(run: Path, facts: Mapping[str, Any]) -> Path:
    """Write down a temperature and what it was fitted on, so that damage is noticed."""
    sealed = {**facts, _SEAL: checksum(facts)}
    return write_whole(run / "temperature.json", json.dumps(sealed, indent=2) + "\n")


def with_temperature(protocol: Protocol, run: Path, checkpoint: Path) -> Protocol:
    """Put the number in the place of `fitted`, if the protocol says so."""
    if protocol.temperature != "fitted":
        return protocol
    return replace(protocol, temperature=read_temperature(run, checkpoint)["temperature"])


def read_temperature(run: Path, checkpoint: Path) -> dict[str, Any]:
    """Read what was kept, and refuse what was fitted to another checkpoint."""
    file, again = run / "temperature.json", f"`bts evaluate {run} --part val --fit-temperature`"
    try:
        kept: dict[str, Any] = json.loads(content(file))
        if kept.pop(_SEAL) != checksum(kept):
            raise ValueError("changed after it was written")
        fitted_to = kept["checkpoint_sha256"]
        kept["temperature"] = Protocol(temperature=float(kept["temperature"])).divisor
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file; {again} fits a temperature") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} holds no temperature as one was kept; {again} fits one") from error
    if fitted_to != sha256(checkpoint):
        raise UserError(f"{file} was fitted to another checkpoint than {checkpoint}; do {again}")
    return kept
