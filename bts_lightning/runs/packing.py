"""Make one file of trained runs: all that a colleague needs, and nothing of this machine."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from bts_lightning import config as configuration
from bts_lightning.config.merge import join
from bts_lightning.config.reach import guarded
from bts_lightning.config.targets import PACKAGES
from bts_lightning.data.splits import Split
from bts_lightning.errors import ConfigError, UserError
from bts_lightning.files import content, overwritten, sha256
from bts_lightning.report.card import UNSAID, Card, scores, told
from bts_lightning.report.facts import LEFT_OUT, read_protocol, short
from bts_lightning.report.summary import Summary, summarise
from bts_lightning.report.table import PATIENT, EvaluationTable
from bts_lightning.runs import container
from bts_lightning.runs.checkpoints import read_checkpoint, weights_alone
from bts_lightning.runs.ensemble import Ensemble, load_ensemble
from bts_lightning.runs.facts import versions
from bts_lightning.runs.folder import sealed
from bts_lightning.runs.opening import OpenRun
from bts_lightning.runs.seen import Seen

# What an evaluation may choose for itself: it changes no label map.
_SCORING = (
    *("scheme", "subsets", "draw", "hd95", "empty", "leak"),
    *("lesions", "lesion_task", "calibration", "calibration_band"),
)


@dataclass(frozen=True)
class Said:
    """What only a person can say of a package: its title, and what may be done with it."""

    title: str | None = None
    license: str = "unknown"
    data: str = UNSAID
    data_license: str = UNSAID


def pack(opened: Sequence[OpenRun], out: Path, evaluation: Path | None, said: Said) -> None:
    """Write the package of some runs.

    Args:
        opened: the runs.
        out: the file.
        evaluation: the folder of theirs whose scores go along.
        said: by whoever packs.
    """
    if both := overwritten([out], [one.checkpoint for one in opened]):
        raise UserError(f"{both[0]} would overwrite {both[1]}, which is packed; name another")
    ensemble = load_ensemble(opened)
    summary = None if evaluation is None else _summary(evaluation, ensemble)
    parts: dict[str, bytes] = {}
    seen = []
    for number, one in enumerate(opened, 1):
        place = container.place_of(number, len(opened))
        temperature = ensemble.members[number - 1].protocol.temperature
        found = _parts(one, temperature)
        parts |= {f"{place}{name}": part for name, part in found.items()}
        seen.append(json.loads(found[container.SEEN])["cases"] if container.SEEN in found else {})
    if summary is not None:
        parts[container.SCORES] = _json(scores(summary))
    names = [type(member.net).__name__ for member in ensemble.members]
    card = Card(
        title=said.title or f"{', '.join(dict.fromkeys(names))} for missing MRI modalities",
        license=said.license,
        data=said.data,
        data_license=said.data_license,
        file=out.name,
        networks=names,
        scheme=ensemble.loss.scheme_name,
        version=versions()["bts_lightning"],
        cases=seen,
        packages=sorted({p for one in opened for p in _packages(one)}),
        summary=summary,
    )
    facts = {
        "title": card.title,
        "created": time.strftime("%FT%T"),
        "versions": versions(),
        "networks": names,
        "scheme": card.scheme,
        "regions": list(ensemble.loss.scheme.regions),
        "protocol": [member.protocol.facts() for member in ensemble.members],
    }
    container.write_package(out, facts, {container.CARD: card.markdown().encode(), **parts})


def _parts(one: OpenRun, temperature: object) -> dict[str, bytes]:
    """Give what a package holds of a run."""
    parts = {
        container.CONFIG: _portable(one, temperature).encode(),
        container.WEIGHTS: weights_alone(read_checkpoint(one.checkpoint)),
    }
    lists = one.run / "split.json"
    seen = Seen.of(Split.load(lists)) if lists.exists() else Seen.load(one.run)
    if seen is not None:
        parts[container.SEEN] = seen.to_json().encode()
    if (one.run / container.PROVENANCE).exists():
        parts[container.PROVENANCE] = content(one.run / container.PROVENANCE)
    return parts


def _portable(one: OpenRun, temperature: object) -> str:
    """Write the configuration as it holds on any machine; see that it opens there."""
    tree: Any = OmegaConf.to_container(one.config, resolve=False)
    # Places here, and what a training did beside its steps. A loader of another package may have
    # other keys, and these would be refused.
    data, task = tree["data"], tree["task"]
    data |= {key: value for key, value in (("root", "data"), ("cache", None)) if key in data}
    if not isinstance(data.get("split", ""), str) or data.get("split", "").endswith(".json"):
        del data["split"]
    if (data.get("availability") or {}).get("file"):
        del data["availability"]
    if task.get("teacher"):
        task["teacher"] = None
    tree |= {"callbacks": None, "logger": None}
    tree["evaluation"]["temperature"] = temperature
    tree = OmegaConf.to_container(guarded(tree), resolve=True)
    for key, text in _texts(tree):
        if text.startswith(("/", "~")):
            raise ConfigError(
                f"{one.run}: {key}={text} is a place on this machine, which a package cannot bring "
                f"along; give another value, as {key}=null"
            )
    config = guarded(tree)
    configuration.check(config, supplied=configuration.SUPPLIED)
    return sealed(config)


def _packages(one: OpenRun) -> Iterator[str]:
    """Yield the packages that must be allowed to open a run."""
    for key, text in _texts(OmegaConf.to_container(one.config, resolve=False)):
        package = text.partition(".")[0]
        is_kept = not key.startswith(("callbacks.", "logger."))
        if is_kept and key.endswith("._target_") and package not in PACKAGES:
            yield package


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield each text with its key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, item in items:
            yield from _texts(item, join(key, name))


def _summary(folder: Path, ensemble: Ensemble) -> Summary:
    """Read the scores of an evaluation, which must be that of what is packed."""
    protocol = read_protocol(folder)
    members = protocol.get("members") or [protocol]
    weights = [member.get("checkpoint_sha256") for member in members]
    if weights != [sha256(one.checkpoint) for one in ensemble.runs]:
        raise UserError(
            f"{folder} scored other weights than are packed; evaluate these, with --name, and give "
            "--evaluation that name, or none"
        )
    each = [member.protocol.facts() for member in ensemble.members]
    for key in sorted({key for one in each for key in one} | LEFT_OUT.keys()):
        values = [one.get(key, LEFT_OUT.get(key)) for one in each]
        is_shared = values.count(values[0]) == len(values)
        packed = values[0] if is_shared else " | ".join(short(key, value) for value in values)
        scored = protocol.get(key, LEFT_OUT.get(key))
        if key not in _SCORING and packed != scored:
            raise UserError(
                f"{folder} was made with {key} {scored}, the package would have {packed}; give the "
                "same override to both, or --evaluation none"
            )
    return summarise(nameless(EvaluationTable.read(folder)), told(protocol))


def nameless(table: EvaluationTable) -> EvaluationTable:
    """Call cases and patients by number: a report names those that lack something."""
    rows = table.rows.copy()
    for column in ("case", PATIENT):
        names = sorted(set(rows[column]))
        numbers = {name: f"{column} {number}" for number, name in enumerate(names, 1)}
        rows[column] = rows[column].map(numbers)
    return EvaluationTable.from_rows(rows)


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
