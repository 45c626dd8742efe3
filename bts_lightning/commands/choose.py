"""What `bts best` does: segment validation cases once, choose, and say how to use the choice."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.progress import track
from rich.table import Table

from bts_lightning.commands.evaluate import fit_temperature
from bts_lightning.commands.score import evaluation_facts, open_part
from bts_lightning.data.splits import Split
from bts_lightning.errors import UserError
from bts_lightning.files import checksum, write_whole
from bts_lightning.inference import Protocol
from bts_lightning.losses import SegmentationLoss
from bts_lightning.memory import keep_freed_memory
from bts_lightning.report.comparison import difference
from bts_lightning.report.document import Document, Sheet
from bts_lightning.report.folder import making
from bts_lightning.report.screen import Screen
from bts_lightning.report.statistics import Estimate
from bts_lightning.runs.devices import chosen_device
from bts_lightning.runs.ensemble import load_ensemble
from bts_lightning.runs.folder import best_checkpoint, refuse_links
from bts_lightning.runs.opening import open_runs
from bts_lightning.runs.quiet import hush
from bts_lightning.runs.temperature import read_temperature
from bts_lightning.study.choice import PART_MINIMA, Choice, Cleanup, Counts, choose
from bts_lightning.study.plan import Training
from bts_lightning.study.validation import Counter, candidates

console = Screen()
AT_ONE = "evaluation.temperature=1"


@dataclass(frozen=True)
class _Counted:
    """What was counted on the validation cases, by candidate."""

    counts: Mapping[str, Counts]
    patients: Sequence[str]
    loss: SegmentationLoss
    protocol: Protocol


def choose_best(
    folder: Path,
    experiments: Mapping[str, Sequence[Training]],
    words: Sequence[str],
    allow: Sequence[str],
    device: str | None,
) -> Path:
    """Choose the best experiment or pair of a study; give the page that says so.

    Args:
        folder: of the study.
        experiments: their trainings, which have seeds and folds in common.
        words: overrides for all of them.
        allow: packages that `_target_` may name beyond ours.
        device: `cpu`, `cuda` or `cuda:1`; a GPU if there is one by default.
    """
    hush()
    keep_freed_memory()
    refuse_links(folder, "best", "best.md", "best.html", "best.json")
    fitted, of_temperature = _temperature(experiments, words, allow, device)
    words = [*words, *fitted]
    found = _count(folder, experiments, words, allow, device)
    choice = choose(found.counts, found.patients, found.loss.scheme, found.protocol.empty)
    chosen = [t for name in choice.name.split(" + ") for t in experiments[name]]
    used = [*words, *choice.cleanup.words]
    commands = _commands(chosen, used)
    regions = list(found.loss.scheme.regions)
    rows = _rows(choice, experiments)
    told = [*_remarks(choice, found, chosen), of_temperature]
    table = Table(title="Validation Dice (%)", title_justify="left", box=box.SIMPLE_HEAD)
    heads = ["candidate", "runs", *regions, "mean", "the chosen gains"]
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for line in [*told, *commands]:
        console.print(line)
    sheets = [
        Sheet("Validation Dice (%), mean over subsets [95 % interval]", heads, rows),
        Sheet("How to use it", ["command"], [[line] for line in commands]),
    ]
    facts = {"chosen": choice.name, "runs": [str(t.run) for t in chosen], "words": used}
    write_whole(folder / "best.json", json.dumps(facts, indent=2) + "\n")
    page = Document("Best configuration", told, sheets).write(folder / "best")
    console.print(f"page    {page}")
    return page


def _temperature(
    experiments: Mapping[str, Sequence[Training]],
    words: Sequence[str],
    allow: Sequence[str],
    device: str | None,
) -> tuple[list[str], str]:
    """Fit the temperature of every run that has none, and say whether to apply them."""
    if any(word.lstrip("-").startswith("evaluation.temperature=") for word in words):
        return [], "Temperature: as given."
    before, after = [], []
    for training in (t for own in experiments.values() for t in own):
        checkpoint = best_checkpoint(training.run)
        try:
            if not _is_fitted(training.run, checkpoint):
                fit_temperature(training.run, words=words, allow=allow, device=device)
        except UserError as error:
            # A network that has learned little may have no temperature, and be the best yet.
            return [AT_ONE], f"Temperature: left at 1, for {error}."
        nll = read_temperature(training.run, checkpoint)["nll"]
        if nll["held_out"] is None:
            return [AT_ONE], "Temperature: left at 1, because one patient cannot be held out."
        before.append(nll["before"])
        after.append(nll["held_out"])
    is_better = np.mean(after) < np.mean(before)
    told = (
        f"Temperature: fitted to other patients it takes the NLL from {np.mean(before):.5f} to "
        f"{np.mean(after):.5f} (mean over {len(after)} runs), so it is "
        f"{'applied' if is_better else 'left at 1'}."
    )
    return ["evaluation.temperature=fitted" if is_better else AT_ONE], told


def _is_fitted(run: Path, checkpoint: Path) -> bool:
    """Say whether a run keeps a temperature with all that the choice asks for."""
    try:
        return "held_out" in read_temperature(run, checkpoint)["nll"]
    except (UserError, KeyError, TypeError):
        return False


def _count(
    folder: Path,
    experiments: Mapping[str, Sequence[Training]],
    words: Sequence[str],
    allow: Sequence[str],
    device: str | None,
) -> _Counted:
    """Segment each validation case by the runs that it validated; folds come one after another."""
    each: list[Counts] = []
    patients: list[str] = []
    asked_of = [*words, *Cleanup().words]
    for fold in dict.fromkeys(t.fold for own in experiments.values() for t in own):
        group = [t for own in experiments.values() for t in own if t.fold == fold]
        opened = open_runs([t.run for t in group], asked_of, allow)
        ensemble = load_ensemble(opened).to(chosen_device(device))
        ensemble.setup("test")
        ensemble.admit()
        data = open_part(group[0].run, ensemble.data[0], "val")
        for training in group:
            if Split.load(training.run / "split.json").val != data.split.val:
                raise UserError(
                    f"{training.run} was validated on other cases than {group[0].run}, so the two "
                    "cannot be compared; give all trainings of a study one split, or folds"
                )
        facts = evaluation_facts(ensemble, data, "val")
        names = [t.experiment for t in group]
        made = checksum([making(facts), names, PART_MINIMA])
        where = folder / "best" / (f"fold-{fold}" if fold else "cases")
        counter = Counter(ensemble, names, ensemble.prepared(data), where, made)
        asked = ensemble.protocol.subsets_of(data.split.val)
        title = f"fold {fold}" if fold else "validation cases"
        for name in track(data.split.val, title, console=console, disable=not console.is_terminal):
            each.append(counter.case(name, asked[name]))
            patients.append(data.cases[name].patient)
    stacked = np.stack(each, axis=1)  # candidate, case, subset, size, predicted, true
    named = [" + ".join(one) for one in candidates(list(experiments))]
    counts = dict(zip(named, stacked, strict=True))
    return _Counted(counts, patients, ensemble.loss, ensemble.protocol)


def _rows(choice: Choice, experiments: Mapping[str, Sequence[Training]]) -> list[list[str]]:
    """Write a candidate a row, the best first."""
    rows = []
    for name in sorted(choice.table, key=lambda name: -choice.table[name].mean[-1]):
        runs = sum(len(experiments[one]) for one in name.split(" + "))
        cells = [f"{100 * value:.2f}" for value in choice.table[name].mean]
        gain = _percent(choice.gain[name]) if name in choice.gain else "chosen"
        rows.append([name, str(runs), *cells, gain])
    return rows


def _percent(gain: Estimate) -> str:
    """Write a mean gain in points, with its interval."""
    average, low, high = (100 * value for value in gain.at(-1))
    return difference(average, low, high, low > 0 or high < 0)


def _remarks(choice: Choice, found: _Counted, chosen: Sequence[Training]) -> list[str]:
    cases, patients = len(found.patients), len(set(found.patients))
    folds = {t.fold for t in chosen if t.fold}
    others = [name for name in choice.gain if " + " not in name]
    said = [
        f"Chosen: {choice.name}, {_count_of(len(chosen), 'run')}, by the mean Dice over subsets "
        f"and regions of {_count_of(cases, 'validation case')} ({_count_of(patients, 'patient')}); "
        "no test case had a part in it."
    ]
    if others:
        second = max(others, key=lambda name: choice.table[name].mean[-1])
        said.append(
            f"It gains {_percent(choice.gain[second])} points over {second} alone (95 % interval "
            "over patients; * where that is without 0). The best of several looks better on the "
            "cases that chose it than on others."
        )
    rule = choice.cleanup
    becomes = "background" if rule.et_small == "erase" else "necrosis"
    rules = {
        f"parts below {rule.component_minimum} voxels become background": rule.component_minimum,
        f"an ET below {rule.et_minimum} voxels becomes {becomes}": rule.et_minimum,
    }
    said.append(
        f"Cleanup: {', '.join(text for text, is_so in rules.items() if is_so) or 'none'}. What was "
        f"best on other patients takes the mean Dice from {100 * choice.plain:.2f} to "
        f"{100 * choice.held_out:.2f} ({_percent(choice.cleaned)})."
    )
    if folds:
        said.append(
            "Each case was segmented by the folds that it validated. All folds together have seen "
            "every case, so evaluate them on other data: put its folder for DATA and a list of its "
            "cases for LIST."
        )
    return said


def _count_of(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _commands(chosen: Sequence[Training], words: Sequence[str]) -> list[str]:
    """Write the two commands that use the choice."""
    runs = [str(training.run) for training in chosen]
    other = ["data.root=DATA", "data.split={test: LIST}"] if chosen[0].fold else []
    return [
        shlex.join(["bts", "evaluate", *runs, *words, *other, "--name", "best"]),
        shlex.join(["bts", "predict", *runs, *words, "--folder", "FOLDER", "--out", "OUT"]),
    ]
