"""The result of a local sweep: best trial, all trials, importance and curves, Markdown and HTML."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from bts_lightning.report.curves import draw_curves
from bts_lightning.report.document import Document, Sheet
from bts_lightning.sweep.plots import draw_choices, draw_points, draw_shares
from bts_lightning.sweep.space import Parameter
from bts_lightning.sweep.store import Store, number_of

_NAMES = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
# A forest of trees on fewer points explains noise.
_FEWEST = 4


def write_result(store: Store, words: Sequence[str]) -> Path:
    """Write result.md and result.html into the sweep's folder; give the HTML."""
    trials = [t for t in store.trials() if t.state != TrialState.WAITING]
    order = {TrialState.COMPLETE: 0, TrialState.PRUNED: 1, TrialState.RUNNING: 2}
    trials.sort(key=lambda t: (order.get(t.state, 3), -store.sweep.sign * (_score(store, t) or 0)))
    facts = [f"{name}: {text}" for name, text in _facts(store, words, trials).items()]
    result = Document(f"Sweep {store.sweep.name}", facts, _sheets(store, trials))
    return shown_path(result.write(store.folder / "result"))


def state_name(state: TrialState) -> str:
    """Say a state in our words."""
    return _NAMES[state]


def counts(trials: Sequence[FrozenTrial]) -> str:
    """Count the trials by state."""
    by_state = {state: sum(t.state == state for t in trials) for state in _NAMES}
    return ", ".join(f"{n} {_NAMES[state]}" for state, n in by_state.items() if n) or "no trial"


def short(values: Mapping[str, Any]) -> str:
    """Write values for people, as overrides."""
    return " ".join(f"{name}={_number(value)}" for name, value in values.items())


def shown_path(path: Path) -> Path:
    """Write a path as short as it can be typed."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _facts(store: Store, words: Sequence[str], trials: Sequence[FrozenTrial]) -> dict[str, str]:
    sweep = store.sweep
    facts = {
        "experiment": " ".join(words) or "none",
        "sweep": f"{sweep.file}, method {sweep.method}",
        "metric": f"{sweep.metric}, {sweep.goal}: the best value that a trial logged",
        "trials": counts(trials),
    }
    if best := _best(trials):
        exact = [f"{name}={value}" for name, value in best.user_attrs["values"].items()]
        facts["best"] = f"trial {number_of(best)}: {best.value:.4f} with {short(_values(best))}"
        facts["evaluate it"] = f"bts evaluate {shown_path(store.run(best))}"
        facts["train it again"] = shlex.join(["bts", "train", *words, *exact])
    return facts


def _sheets(store: Store, trials: Sequence[FrozenTrial]) -> list[Sheet]:
    names, shares = _varied(store), _importance(store)
    sheets = [
        Sheet(
            "Curves",
            notes=["Orange: the best; grey: pruned or failed."],
            figures=_figures(store, trials),
        )
    ]
    if shares:
        rows = [[name, f"{100 * share:.0f} %"] for name, share in shares]
        heads, about = ["parameter", "share"], [_ABOUT_IMPORTANCE]
        sheets.append(Sheet("Importance", heads, rows, about, figures=[draw_shares(shares)]))
    heads = ["trial", "state", store.sweep.metric, "validations", *names, "why"]
    rows = [_row(store, trial, names) for trial in trials]
    return [*sheets, Sheet("Trials", heads, rows, is_prose=True)]


_ABOUT_IMPORTANCE = (
    "The share of the differences between finished trials that a forest of regression trees puts "
    "down to each parameter (fANOVA). With few finished trials it is a hint, not a finding."
)


def _importance(store: Store) -> list[tuple[str, float]]:
    done = store.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    values = {trial.value for trial in done}
    if len(done) < _FEWEST or len(values) < 2:
        return []
    evaluator = FanovaImportanceEvaluator(seed=0)
    try:
        shares = get_param_importances(store.study, evaluator=evaluator)
    except (ValueError, RuntimeError, optuna.exceptions.OptunaError):
        return []  # every parameter had one value only
    return [(name, share) for name, share in shares.items() if share == share]


def _figures(store: Store, trials: Sequence[FrozenTrial]) -> list[str]:
    metric, best = store.sweep.metric, _best(trials)
    seen = [t for t in trials if t.intermediate_values]
    if not seen:
        return []

    def kind(trial: FrozenTrial) -> str:
        if best is not None and trial.number == best.number:
            return "best"
        return "other" if trial.state in (TrialState.COMPLETE, TrialState.RUNNING) else "pruned"

    def title(trial: FrozenTrial) -> str:
        return f"trial {number_of(trial)}: {short(_values(trial))}"

    curves = [(title(t), _history(t), kind(t)) for t in seen]
    figures = [draw_curves(curves, metric)]
    for parameter in store.sweep.parameters:
        if parameter.name not in _varied(store):
            continue
        name = parameter.name
        points = [(title(t), _values(t)[name], _score(store, t) or 0.0, kind(t)) for t in seen]
        if _is_numeric(parameter):
            figures.append(draw_points(points, name, metric, parameter.is_logarithmic))
        else:
            figures.append(draw_choices(points, name, metric))
    return figures


def _varied(store: Store) -> list[str]:
    return [p.name for p in store.sweep.parameters if len(p.choices) != 1]


def _is_numeric(parameter: Parameter) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in parameter.choices)


def _best(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    return next((t for t in trials if t.state == TrialState.COMPLETE), None)


def _values(trial: FrozenTrial) -> dict[str, Any]:
    return dict(trial.user_attrs.get("values", {}))


def _history(trial: FrozenTrial) -> list[float]:
    return [value for _, value in sorted(trial.intermediate_values.items())]


def _score(store: Store, trial: FrozenTrial) -> float | None:
    return store.best(_history(trial))


def _row(store: Store, trial: FrozenTrial, names: Sequence[str]) -> list[str]:
    score, values = _score(store, trial), _values(trial)
    why = "" if trial.state != TrialState.FAIL else "its worker died"
    return [
        str(number_of(trial)),
        state_name(trial.state),
        "–" if score is None else f"{score:.4f}",
        str(len(trial.intermediate_values)),
        *(_number(values.get(name, "–")) for name in names),
        str(trial.user_attrs.get("reason", why)),
    ]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
