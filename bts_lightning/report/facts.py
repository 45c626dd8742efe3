"""How an evaluation was made, in words: the file `protocol.json` beside the table."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bts_lightning.errors import DataError
from bts_lightning.files import NotAFileError, checksum, content, write_whole
from bts_lightning.metrics.calibration.counts import BINS
from bts_lightning.metrics.lesions.tasks import TASKS

HD95 = {
    "pooled": "the 95th percentile of the surface distances of both directions together, in "
    "millimetres (as medpy and nnU-Net)",
    "directed": "the larger of the two directed 95th percentiles of the surface distances, in "
    "millimetres (as MONAI and surface-distance)",
}
EMPTY = {
    "brats": "a region absent from expert and prediction scores Dice 100 % and HD95 0 mm; absent "
    "from one of them, Dice 0 and HD95 373.13 mm",
    "brats2023": "a region absent from expert and prediction scores Dice 100 % and HD95 0 mm; "
    "absent from one of them, Dice 0 and HD95 374 mm",
    "nan": "a region absent from expert and prediction has no value and is left out of the means "
    "(n says how many cases remain); HD95 also where it is absent from one of them",
    "amoe_bts": "a region absent from the expert has no value and is left out of the means (n says "
    "how many cases remain), and so is every HD95 of 0 mm, as in AMoE-BTS's code",
}
# What a reader asks first stands first; other keys follow as they come.
_ORDER = (
    "experiment",
    "network",
    "checkpoint",
    "split",
    "window",
    "overlap",
    "windows",
    "weighting",
    "average",
    "mirror",
    "precision",
    "seed",
    "created",
    "commit",
    "data_fingerprint",
    "versions",
)
# The file holds more of each network that was averaged.
_OF_A_MEMBER = ("run", "network", "checkpoint", "seed", "split", "commit")
# What a protocol leaves out where it is so, as tables do from before these options.
LEFT_OUT: dict[str, object] = {
    "scheme": "brats",
    "leak": "none",
    "windows": "even",
    "average": "probabilities",
    "et_minimum": 0,
    "component_minimum": 0,
    "draw": "all",
    "lesions": "not scored",
    "temperature": 1,
    "calibration": False,
    "importance": False,
}
_SEAL, _OF = "checksum", "checksum_of_"
# These are told in sentences, not in the list of facts.
_TOLD = (
    *("hd95", "empty", "lesions", "lesion_task", "calibration", "calibration_band", "importance"),
    *("cases", "subsets", "unscored"),
)


def read_protocol(folder: Path) -> dict[str, Any]:
    """Read `protocol.json` of an evaluation folder."""
    file = folder / "protocol.json"
    try:
        protocol = json.loads(content(file))
    except FileNotFoundError as fault:
        raise DataError(f"{file}: no such file; `bts evaluate RUN` writes it") from fault
    except NotAFileError as fault:
        raise DataError(f"{file}: {fault.strerror}; take it away and evaluate again") from fault
    except (ValueError, RecursionError) as fault:
        raise DataError(f"{file}: not readable as JSON ({fault}); evaluate again") from fault
    if not isinstance(protocol, dict):
        raise DataError(f"{file}: holds a {type(protocol).__name__}, not a mapping; evaluate again")
    # Tables from before, and those of other programs, have none.
    seal = protocol.pop(_SEAL, None)
    tables = {key: told for key, told in protocol.items() if key.startswith(_OF)}
    if (seal or tables) and seal != checksum(protocol):
        raise DataError(f"{file}: damaged, or changed by hand; evaluate again")
    for key, told in tables.items():
        del protocol[key]
        rows = folder / f"{key.removeprefix(_OF)}.csv"
        if told and rows.is_file() and told != checksum(content(rows).hex()):
            raise DataError(f"{rows}: damaged, or changed by hand; evaluate again")
    return protocol


def write_protocol(
    folder: Path, facts: Mapping[str, Any], tables: Mapping[str, str] | None = None
) -> None:
    """Write `protocol.json` so that damage is noticed, to the tables beside it as well."""
    sums = {kind: checksum(text.encode().hex()) for kind, text in (tables or {}).items()}
    told = {**facts, **{f"{_OF}{kind}": value for kind, value in sums.items()}}
    sealed = {**told, _SEAL: checksum(told)}
    write_whole(folder / "protocol.json", json.dumps(sealed, indent=2) + "\n")


def policy(protocol: Mapping[str, Any]) -> str:
    """Say in one sentence what HD95 means here and how empty regions score."""
    distance, empty = (str(protocol.get(key, "not recorded")) for key in ("hd95", "empty"))
    return (
        f"HD95 (“{distance}”) is {HD95.get(distance, 'not described here')}. "
        f"Empty regions (policy “{empty}”): {EMPTY.get(empty, 'not described here')}."
        f"{_lesions(protocol)}{_calibration(protocol)}{_importance(protocol)}{_leak(protocol)}"
    )


def _lesions(protocol: Mapping[str, Any]) -> str:
    """Say by which rules lesions are scored; nothing if they are not."""
    name, task = protocol.get("lesions"), protocol.get("lesion_task")
    if name is None:
        return ""
    rules = TASKS.get((str(name), str(task)))
    start = f" Lesion-wise scores are those of “{name}”, task “{task}”: "
    if rules is None:
        return f"{start}not described here."
    if name == "brats2025":
        averaged = (
            "Dice, HD95 and NSD are averages over lesions from 27 mm³ and all false ones"
            if task == "met"
            else "Dice, HD95 and NSD are averages over the matches, so misses and false lesions "
            "show in F1 alone"
        )
        return f"{start}lesions of expert and prediction are matched one to one; {averaged}."
    merged = ", predicted lesions are merged likewise" if rules.merges_predictions else ""
    penalty = "the grid's diagonal" if rules.penalty is None else f"{rules.penalty:g} mm"
    leasts = "".join(f" ({region}: {mm3:g})" for region, mm3 in rules.leasts.items())
    return (
        f"{start}parts that touch after {rules.dilation} steps of dilation are one lesion{merged}; "
        f"lesions above {rules.least:g} mm³{leasts} count; one that is missed or invented has Dice "
        f"0 and HD95 {penalty}."
    )


def _calibration(protocol: Mapping[str, Any]) -> str:
    """Say where probabilities are measured; nothing if they are not."""
    if not protocol.get("calibration"):
        return ""
    return (
        f" Calibration errors ({BINS} bins of equal width) and Brier scores are those of each "
        "region's probabilities, over the brain and over the band of its voxels that are at most "
        f"{protocol.get('calibration_band')} mm from the surface of the region in the truth; a "
        "region without truth has no band."
    )


def _leak(protocol: Mapping[str, Any]) -> str:
    """Say that cases were known to the networks; nothing if they were not."""
    seen = protocol.get("seen")
    return f" Leak: {seen}, so these scores are better than those of new patients." if seen else ""


def _importance(protocol: Mapping[str, Any]) -> str:
    """Say what a weight is averaged over; nothing if none is."""
    if not protocol.get("importance"):
        return ""
    return (
        " Weights of modalities are means over the voxels of a region in the truth; a case without "
        "that region has none."
    )


def brief(protocol: Mapping[str, Any]) -> str:
    """Say in one line what a reader must know before comparing numbers."""
    keys = (
        *("window", "overlap", "weighting", "mirror", "temperature", "precision"),
        *("checkpoint", "commit"),
    )
    told = [f"{key} {short(key, protocol[key])}" for key in keys if key in protocol]
    policies = f"HD95 {protocol.get('hd95')}, empty regions {protocol.get('empty')}"
    if protocol.get("lesions"):
        policies += f", lesions {protocol['lesions']} ({protocol.get('lesion_task')})"
    return f"{'; '.join([*told, policies])}."


def short(key: str, value: object) -> str:
    """Write a value of the protocol in few letters."""
    if key == "commit":
        return as_text(value)[:10]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "×".join(as_text(inner) for inner in value)
    return as_text(value)


def facts(protocol: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List what is known about the evaluation as pairs of label and text."""
    keys = [key for key in _ORDER if key in protocol]
    keys += [key for key in protocol if key not in _ORDER and key not in _TOLD]
    told = [(key.replace("_", " "), as_text(protocol[key])) for key in keys if key != "members"]
    for number, one in enumerate(protocol.get("members", ()), 1):
        shown = {key: one[key] for key in _OF_A_MEMBER if key in one}
        told.append((f"member {number}", as_text(shown)))
    return told


def unscored(protocol: Mapping[str, Any]) -> list[str]:
    """List the cases that were predicted but have no label to be scored with."""
    return [str(case) for case in protocol.get("unscored") or []]


def as_text(value: object) -> str:
    """Write a value of the protocol for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping) and "fingerprint" in value:
        others = ", ".join(
            f"part {value[key]}" if key == "part" else as_text(value[key])
            for key in value
            if key != "fingerprint"
        )
        return f"{others} (fingerprint {value['fingerprint']})"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {as_text(inner)}" for key, inner in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(as_text(inner) for inner in value)
    return "not recorded" if value is None else str(value)
