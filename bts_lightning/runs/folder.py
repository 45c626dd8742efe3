"""Run folders: where a training keeps its configuration, checkpoints, logs and evaluations."""

import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from itertools import permutations
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bts_lightning.config.merge import experiments, join
from bts_lightning.data.splits import PARTS, Part, Split
from bts_lightning.errors import ConfigError, UserError
from bts_lightning.files import checksum, content, expanded, write_whole
from bts_lightning.runs.container import (
    SEEN,
    WEIGHTS,
    is_package,
    is_unpacked,
    open_package,
    refuse_package,
    runs_in,
)

# How one process tells those that Lightning starts for the other devices where the run lives.
RUN_VARIABLE = "BTS_RUN"
RUNS = Path("runs")
_FOLDERS = ("checkpoints", "logs", "overlays", "evaluation", "view")
_FILES = (
    *("config.yaml", "provenance.json", "split.json", "logs/metrics.csv"),
    *("output.log", "worker.json", "trained.txt", "temperature.json", ".lock", "logs/wandb.json"),
)
_SEAL = "# checksum: "
# What helps where a study or a sweep would mix with another one.
OTHER_NAME = "name this one with --name, or delete that folder"


def new_run(experiment: str, root: Path = RUNS) -> Path:
    """Choose the folder of a new run, the same for every process of a distributed job."""
    if given := os.environ.get(RUN_VARIABLE):
        return Path(given)
    name = _job_name() or time.strftime("%Y%m%d-%H%M%S")
    folder = root / re.sub(r"[^\w.+-]+", "_", experiment) / name
    # A requeued Slurm job comes back to its own folder; anything else never shares one.
    if not _job_name():
        count = 1
        while folder.exists():
            count += 1
            folder = folder.with_name(f"{name}-{count}")
    os.environ[RUN_VARIABLE] = str(folder.resolve())
    return folder


def refuse_another(file: Path, now: object, advice: str, allowed: Sequence[str] = ()) -> None:
    """Refuse to go on in a folder with other facts than those that its file keeps, if there is one.

    Args:
        file: YAML, as `config.yaml` of a run.
        now: a tree of what holds now.
        advice: what the user can do.
        allowed: dotted keys that may change.
    """
    if not file.is_file():
        return
    before = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    for key, old, new in _differences(before, now):
        if key not in allowed:
            raise ConfigError(f"{file.parent} began with {key}={old}, now it is {new}; {advice}")


def _differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """List the dotted keys with other values, and these."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*old, *new]):
            yield from _differences(old.get(name), new.get(name), join(key, name))
    elif old != new:
        yield key, old, new


def find_run(where: str | Path | None, experiment: str | None = None, root: Path = RUNS) -> Path:
    """Find a run by its folder, or the newest one of an experiment."""
    if where is not None:
        if is_run(Path(where)):
            return Path(where)
        if len(found := _packed(Path(where))) == 1:
            return found[0]
        if found:
            raise UserError(f"{where} holds {len(found)} runs, where one is asked for")
        raise UserError(
            f"{where} is not a run: it has no config.yaml; give a folder as runs/NAME/DATE"
        )
    below = root / experiment if experiment else root
    found = sorted(below.glob("**/config.yaml"), key=lambda file: file.stat().st_mtime)
    if not found:
        known = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
        hint = f"there are runs of: {', '.join(known)}" if known else "train one first"
        if experiment and experiment not in (meant := [*known, *experiments()]):
            near = get_close_matches(experiment, meant, n=1, cutoff=0.8)
            hint = f"did you mean {near[0]}?" if near else hint
        raise UserError(f"no run below {below}; {hint}")
    # One that stopped before its first epoch ended has nothing to evaluate.
    trained = [file for file in found if checkpoint_files(file.parent)]
    return (trained or found)[-1].parent


def find_runs(where: str | Path) -> list[Path]:
    """Find the runs of a package, or the one of a folder."""
    return _packed(Path(where)) or [find_run(where)]


def _packed(place: Path) -> list[Path]:
    """List the runs of a package, unpacked or not; of anything else none."""
    if is_package(place):
        return open_package(place)
    return runs_in(place) if is_unpacked(place) else []


def require_data(config: DictConfig) -> None:
    """Refuse data that are not there before a run, or a sweep of many, is begun."""
    root = (config.get("data") or {}).get("root")
    if isinstance(root, str) and not expanded(root).exists():
        raise UserError(
            f"data.root is {root}, which does not exist; give a data set, as "
            "data.root=/data/BraTS2020 (`bts phantom scratch` makes one to try)"
        )


def is_run(folder: Path) -> bool:
    """Say whether a folder is a run."""
    return config_file(folder).is_file()


def refuse_links(run: Path, *names: str) -> None:
    """Refuse links that lead out of a run: a run of somebody else would let us write elsewhere.

    Args:
        run: the folder, which may be a link itself.
        names: what is written in it; the whole run without any.
    """
    refuse_package(run)
    home = run.resolve()
    waiting = [home / name for name in names] or [home]
    while waiting:
        place = waiting.pop()
        if not place.resolve().is_relative_to(home):
            raise UserError(
                f"{place} is a link that leads out of the run; move what it leads to into the run, "
                "or take the link away"
            )
        # wandb links what it sends, and begins a new folder for each start.
        if place.is_dir() and not place.is_symlink() and place.name != "wandb":
            with os.scandir(place) as entries:
                waiting += [Path(e.path) for e in entries if e.is_symlink() or e.is_dir()]


def refuse_strangers(run: Path) -> None:
    """Refuse a run in which a folder stands in the place of a file, or the other way round."""
    for names, is_kind, kind in ((_FOLDERS, Path.is_dir, "folder"), (_FILES, Path.is_file, "file")):
        for place in (run / name for name in names):
            if os.path.lexists(place) and not is_kind(place):
                raise UserError(f"{place} is no {kind}, as it is in a run; move it away")


def config_file(run: Path) -> Path:
    """Name the file that holds the merged configuration of a run."""
    return run / "config.yaml"


def save_config(run: Path, config: DictConfig) -> None:
    """Keep the merged configuration with the run."""
    write_whole(config_file(run), sealed(config))


def sealed(config: DictConfig) -> str:
    """Write a configuration as YAML below a line that tells of later changes."""
    text = OmegaConf.to_yaml(config)
    return f"{_SEAL}{checksum(text)}\n{text}"


def was_edited(run: Path) -> bool:
    """Say whether the configuration is another one than was saved, by damage or by hand."""
    # The line comes first: what was cut off at the end would take it along.
    text = content(config_file(run)).decode(errors="surrogateescape")
    first, _, rest = text.partition("\n")
    return first.startswith(_SEAL) and first != f"{_SEAL}{checksum(rest)}"


def check_split(run: Path, data: Any, parts: Sequence[Part]) -> None:
    """Refuse a split of the same data that mixes up what a run trains, validates and tests on."""
    file = run / "split.json"
    if not file.exists():
        return
    roots = (Path(OmegaConf.load(config_file(run)).data.root), Path(data.root))
    first, now = (expanded(root).resolve() for root in roots)
    # Another data set may call other patients by the same names.
    if first != now:
        return
    before = Split.load(file)
    for part, other in permutations(PARTS, 2):
        both = sorted(set(getattr(before, other)) & set(getattr(data.split, part)))
        if both and part in parts:
            raise UserError(
                f"{len(both)} cases, {both[0]} first, were in the {other} part when {run} began "
                f"and are in its {part} part now, because the data or the split have changed; "
                f"data.split={file} keeps the first one"
            )


def seen_cases(run: Path, data: Any, part: Part) -> set[str]:
    """Give the cases of a part that a run has trained on, or that chose its checkpoint.

    Of another data set nothing is known: it may call other patients by the same names. A package
    does not say which one it is of, so its cases are known by name alone.
    """
    if (run / SEEN).exists():
        # pandas takes a second, which no help text needs.
        from bts_lightning.runs.seen import BEFORE, Seen

        seen = Seen.load(run)
        named = {name: data.cases[name].patient for name in getattr(data.split, part)}
        return {n for n, p in named.items() if seen and seen.part_of(n, p) in BEFORE[part]}
    file = run / "split.json"
    if not file.exists():
        return set()
    before = Split.load(file)
    roots = (Path(OmegaConf.load(config_file(run)).data.root), Path(data.root))
    first, now = (expanded(root).resolve() for root in roots)
    if first != now and before.fingerprint != data.fingerprint:
        return set()
    known = {"train": (), "val": before.train, "test": (*before.train, *before.val)}
    return set(known[part]) & set(getattr(data.split, part))


def provenance(run: Path) -> dict[str, Any]:
    """Give what a training wrote down about its code and data; nothing where it has not."""
    try:
        told = json.loads(content(run / "provenance.json"))
        return {key: told[key] for key in ("commit", "versions", "data_fingerprint", "split")}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def best_checkpoint(run: Path) -> Path:
    """Give the checkpoint with the best validation score, or the newest if none was scored."""
    folder = run / "checkpoints"
    best = folder / "best.ckpt"
    # What is no file is refused when it is opened; another one would give other numbers.
    if os.path.lexists(best):
        return best
    newest = checkpoint_files(run)
    if newest:
        return newest[0]
    raise UserError(f"{run} has no checkpoint in {folder}; did its training end its first epoch?")


def checkpoint_files(run: Path) -> list[Path]:
    """List the checkpoints that a training can go on from, newest first; a package's last."""
    found = [p for p in (run / "checkpoints").glob("*.ckpt") if p.name != "best.ckpt"]
    others = (run / "checkpoints" / "best.ckpt", run / WEIGHTS)
    found = sorted(found, key=lambda file: file.lstat().st_mtime_ns, reverse=True)
    return [*found, *(one for one in others if os.path.lexists(one))]


def _job_name() -> str | None:
    """Derive one name for all processes of a job that was not started by Lightning itself."""
    # Agents start in the same second, and their trials share one Slurm job.
    if (sweep := os.environ.get("WANDB_SWEEP_ID")) and (trial := os.environ.get("WANDB_RUN_ID")):
        return f"sweep-{sweep}-{trial}"
    if job := os.environ.get("SLURM_JOB_ID"):
        # An interactive shell inside an allocation has no step of its own.
        return f"slurm-{job}" if "SLURM_PROCID" in os.environ else None
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return _agreed_by_torchrun()
    return None


def _agreed_by_torchrun() -> str:
    """Let rank 0 choose a name through the store that torchrun keeps for its workers."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    key = "bts_lightning/run"
    if os.environ.get("RANK") == "0":
        # A restart of the workers must come back to the folder of the first start.
        store.compare_set(key, "", time.strftime("%Y%m%d-%H%M%S"))
    return str(store.get(key).decode())
