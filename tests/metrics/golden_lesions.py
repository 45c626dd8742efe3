"""Compare our lesion-wise scores with what the official programs printed.

`python -m tests.metrics.golden_lesions FOLDER` judges every file of a folder.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bts_lightning.metrics.lesions.cases import CutCase
from bts_lightning.metrics.lesions.tasks import TASKS

# The files' own README asks for this; only counts and places are exact.
LIMIT = 1e-9


def worst_of(file: Path) -> float:
    """Give the largest difference of a file; what must be exact and is not is infinite."""
    with np.load(file) as npz:
        truth, prediction = npz["truth"], npz["prediction"]
        spacing = tuple(float(s) for s in npz["spacing"])
        official = json.loads(str(npz["official"]))
    worst = 0.0
    for policy, task in TASKS:
        name = {"men_rt": "MEN-RT"}.get(task, task.upper())
        expected = official.get(policy, {}).get(name)
        if expected is None or policy == "brats2025":
            continue
        case = CutCase(truth, prediction[None], spacing, TASKS[policy, task])
        for region, values in expected.items():
            ours = case.scored(region)[0]
            worst = max(worst, _merged(ours, values))
    known = official["brats2025"]
    # The released program swaps the axes of the spacing.
    for tables, used in ((known, spacing[::-1]), (known.get("true_spacing", {}), spacing)):
        for task in ("gli", "ped"):
            case = CutCase(truth, prediction[None], used, TASKS["brats2025", task])
            for region, values in tables.get(task, {}).items():
                worst = max(worst, _matched(case.matched(region.upper())[0], values))
    return worst


def _merged(ours: Any, expected: dict[str, Any]) -> float:
    exact = [
        (ours.found, expected["tp"]),
        (len(ours.counted) - ours.found, expected["fn"]),
        (len(ours.false), expected["fp"]),
        (list(ours.false), expected["false_positives"]),
        ([m.first for m in ours.lesions], [m["first"] for m in expected["lesions"]]),
        ([list(m.predicted) for m in ours.lesions], [m["predicted"] for m in expected["lesions"]]),
    ]
    if any(a != b for a, b in exact):
        return math.inf
    close = [(ours.dice, expected["dice"]), (ours.hd95, expected["hd95"])]
    for mine, theirs in zip(ours.lesions, expected["lesions"], strict=True):
        close += [(getattr(mine, key), theirs[key]) for key in ("mm3", "dice", "hd95")]
        if "nsd05" in theirs:
            close += zip(mine.nsd, (theirs["nsd05"], theirs["nsd10"]), strict=True)
    if "nsd05" in expected:
        close += zip(ours.nsd, (expected["nsd05"], expected["nsd10"]), strict=True)
    return _farthest(close)


def _matched(ours: Any, expected: dict[str, Any]) -> float:
    if (len(ours.lesions), ours.found, ours.false) != (
        expected["n_ref_instances"],
        expected["tp"],
        expected["fp"],
    ):
        return math.inf
    close = [(ours.f1, expected["rq"])]
    instances = sorted((m.is_matched, m.mm3, m.dice, m.hd95, m.nsd) for m in ours.lesions)
    theirs = sorted(
        (bool(m["matched"]), m["mm3"], m["dsc"] or 0.0, m["hd95"] or math.inf, m["nsd"] or 0.0)
        if not m["matched"]
        else (True, m["mm3"], m["dsc"], m["hd95"], m["nsd"])
        for m in expected["instances"]
    )
    for mine, other in zip(instances, theirs, strict=True):
        close += zip(mine, other, strict=True)
    for values, table in (
        (ours.segmentation(), "seg"),
        (ours.metastases(), "mets_infra"),
        (ours.metastases(20), "mets_default"),
    ):
        for value, key in zip(values, ("dsc", "hd95", "nsd"), strict=True):
            if table in expected:
                # An infinite mean is written as the challenge's worst distance.
                close.append((value, min(expected[table][f"lesionwise_{key}_mean"], 373.0)))
    return _farthest(close)


def _farthest(pairs: list[tuple[float, float]]) -> float:
    worst = 0.0
    for mine, other in pairs:
        if mine != other and not (math.isnan(mine) and math.isnan(other)):
            worst = max(worst, abs(mine - other))
    return math.inf if math.isnan(worst) else worst


def main(folder: str) -> int:
    """Print a line a file; exit 1 on a miss."""
    files = sorted(Path(folder).glob("*.npz"))
    missed = 0
    for file in files:
        worst = worst_of(file)
        missed += not worst <= LIMIT
        print(f"{'ok  ' if worst <= LIMIT else 'MISS'} {file.name}: {worst:.1e} of {LIMIT:.0e}")
    return 1 if missed or not files else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
