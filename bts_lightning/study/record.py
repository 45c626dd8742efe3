"""What a study has reproduced of a paper: one file to send, a row of docs/status.md."""

import json
import re
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from omegaconf import OmegaConf

from bts_lightning.errors import DataError, UserError, did_you_mean
from bts_lightning.files import content, write_whole
from bts_lightning.loggers import read_metrics
from bts_lightning.metrics.table import METRICS
from bts_lightning.modalities import REGIONS
from bts_lightning.report.published import Row, dataset_of, rows, select
from bts_lightning.report.table import SUBSET_NAMES
from bts_lightning.runs.folder import config_file, is_run
from bts_lightning.runs.jobs import is_evaluated
from bts_lightning.study.plan import PART
from bts_lightning.study.report import Outcome

_RUN = re.compile(r"seed-(\d+)(?:_fold-(\d+))?")


def record(
    study: Path,
    experiment: str = "",
    *,
    dataset: str = "",
    method: str = "",
    source: str = "",
    by: str = "",
    official: bool = False,
) -> Path:
    """Write what an experiment of a study has reached beside what its paper printed.

    Args:
        study: its folder, or a run that holds official weights.
        experiment: the folder below it; may be left out where there is one only.
        dataset: what was trained on, where the names of the cases do not tell.
        method: as `bts published` calls it; the network's name by default.
        source: of the printed numbers, where several sources printed some.
        by: who has trained it, as a name or a link.
        official: the weights are the authors' own, so nothing was trained.
    """
    if is_run(study) != official:
        raise UserError(
            f"{study}: --official goes with one run of the authors' weights, and with no other; "
            "give the folder of a study for what was trained"
        )
    found = [_official(study)] if official else _outcomes(study, experiment)
    outcomes = [outcome for outcome, _ in found]
    if any(outcome.table.subsets != SUBSET_NAMES for outcome in outcomes):
        raise UserError(f"{study}: papers print the mean over 15 subsets; evaluate in all of them")
    first, run = outcomes[0].protocol, found[0][1]
    cases = sorted({case for outcome in outcomes for case in outcome.table.cases})
    data = dataset or dataset_of(cases) or ""
    network = str(first.get("network"))
    paper = _paper(data, method, network, source)
    ours = {region: _over_seeds(outcomes, region) for region in REGIONS}
    made = {} if official else _provenance(run)
    facts = {
        "official_weights": official,
        "network": network,
        "experiment": found[0][0].experiment,
        "overrides": _overrides(study),
        "data": data or "unknown",
        "test_cases": len(cases),
        "split": (first.get("split") or {}).get("name"),
        "seeds": sorted({outcome.seed for outcome in outcomes}),
        "folds": len({outcome.fold for outcome in outcomes if outcome.fold}),
        "hardware": None if official else _hardware(made),
        "hours_a_training": None if official else _mean_hours([place for _, place in found]),
        "ours": ours,
        "paper": paper and {**paper.values, "source": paper.source, "split": paper.split},
        "gap": paper and {r: round(ours[r][0] - paper.values[r], 2) for r in REGIONS},
        "commit": made.get("commit") or first.get("commit"),
        "versions": made.get("versions") or first.get("versions"),
        "hd95": first.get("hd95"),
        "empty": first.get("empty"),
        "date": time.strftime("%F"),
        "by": by,
    }
    file = study / f"record-{found[0][0].experiment}.json"
    return write_whole(file, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def _official(run: Path) -> tuple[Outcome, Path]:
    folder = run / "evaluation" / PART
    return Outcome.read(run.resolve().parent.name, 0, None, folder), run


def _outcomes(study: Path, experiment: str) -> list[tuple[Outcome, Path]]:
    """Read the evaluations of one experiment."""
    runs = [run for run in sorted(study.glob("*/seed-*")) if _RUN.fullmatch(run.name)]
    done = [run for run in runs if is_evaluated(run, PART)]
    names = sorted({run.parent.name for run in done})
    if not names:
        raise UserError(f"{study} holds no evaluated training of a study; `bts study` makes them")
    if not experiment and len(names) > 1:
        raise UserError(f"{study} holds {', '.join(names)}; say which one with --experiment")
    chosen = experiment or names[0]
    if chosen not in names:
        raise UserError(f"{study} holds no {chosen}; {did_you_mean(chosen, names)}")
    found = []
    for run in done:
        if run.parent.name == chosen and (match := _RUN.fullmatch(run.name)):
            fold = int(match[2]) if match[2] else None
            folder = run / "evaluation" / PART
            found.append((Outcome.read(chosen, int(match[1]), fold, folder), run))
    if len(found) < sum(run.parent.name == chosen for run in runs):
        raise UserError(
            f"{study / chosen}: not every training is evaluated; finish the study first"
        )
    return found


def _paper(data: str, method: str, network: str, source: str) -> Row | None:
    """Find what was printed for the method on these data: of one source, never of two."""
    if not data:
        if method or source:
            raise UserError("the names of the cases do not tell the data set; give --dataset")
        return None
    found = [
        row for row in rows(select(dataset=data, metric="dice")) if {*REGIONS} <= {*row.values}
    ]
    wanted = (method or network).lower().replace("-", "")
    of_method = [row for row in found if row.method.lower().replace("-", "") == wanted]
    if method and not of_method:
        known = {row.method for row in found}
        raise UserError(f"nothing of {method} is printed on {data}: {did_you_mean(method, known)}")
    chosen = (
        [row for row in of_method if source.lower() in row.source.lower()] if source else of_method
    )
    if (source and not chosen) or len(chosen) > 1:
        told = "; ".join(f"{row.source} ({row.split})" for row in of_method)
        raise UserError(f"say with --source whose numbers to take: {told}")
    return chosen[0] if chosen else None


def _over_seeds(outcomes: list[Outcome], region: str) -> list[float]:
    """Give mean and standard deviation over seeds of the mean over folds, subsets and cases."""
    if region not in outcomes[0].table.regions:
        raise UserError(f"the study has no {region}, so nothing to hold against a paper")
    index = outcomes[0].table.regions.index(region)
    of_seed: dict[int, list[float]] = {}
    for outcome in outcomes:
        means = outcome.means(METRICS["dice"])[:, index]
        of_seed.setdefault(outcome.seed, []).append(float(means.mean()))
    means_of_seeds = [mean(folds) for folds in of_seed.values()]
    spread = [stdev(means_of_seeds)] if len(means_of_seeds) > 1 else []
    return [round(value, 2) for value in (mean(means_of_seeds), *spread)]


def _provenance(run: Path) -> dict[str, Any]:
    file = run / "provenance.json"
    try:
        return dict(json.loads(content(file)))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{file}: {error}; the study must be of this program") from error


def _overrides(study: Path) -> list[str]:
    """Take what all trainings share, but what names a place."""
    file = study / "study.yaml"
    told = OmegaConf.select(OmegaConf.load(file), "overrides") if file.is_file() else []
    # It is sent to others, who need not know folders and names of users.
    return [str(word) for word in told or () if "/" not in str(word)]


def _hardware(made: dict[str, Any]) -> str:
    machine = made.get("machine") or {}
    kind = (machine.get("gpus") or [f"{machine.get('cpus')} processor cores"])[0]
    count = int(made.get("processes") or 1)
    return f"{count} × {kind}" if count > 1 else str(kind)


def _mean_hours(runs: list[Path]) -> float | None:
    """Add up the time of steps, as far as it was measured, without validations."""
    hours = []
    for run in runs:
        file = run / "logs" / "metrics.csv"
        curve = read_metrics(file).get("speed/patches_per_second", []) if file.is_file() else []
        batch = int(OmegaConf.select(OmegaConf.load(config_file(run)), "data.batch_size") or 1)
        patches = batch * int(_provenance(run).get("processes") or 1)
        before, seconds = -1, 0.0
        for step, rate in curve:
            seconds += (step - before) * patches / rate
            before = step
        hours += [seconds / 3600] if curve else []
    return round(mean(hours), 2) if hours else None
