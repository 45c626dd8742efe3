"""The result of a local sweep: best trial, all trials, importance and curves, Markdown and HTML."""

import shlex
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from bts_lightning.files import write_whole
from bts_lightning.sweep.plots import draw_choices, draw_curves, draw_points, draw_shares
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
    shares = _importance(store)
    write_whole(store.folder / "result.md", _markdown(store, words, trials, shares))
    page = _html(store, words, trials, shares)
    return shown_path(write_whole(store.folder / "result.html", page))


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


def _markdown(
    store: Store,
    words: Sequence[str],
    trials: Sequence[FrozenTrial],
    shares: Sequence[tuple[str, float]],
) -> str:
    names = _varied(store)
    lines = [f"# Sweep {store.sweep.name}", ""]
    lines += [f"- {name}: {_plain(text)}" for name, text in _facts(store, words, trials).items()]
    if shares:
        lines += ["", "## Importance", "", _ABOUT_IMPORTANCE, ""]
        lines += ["| parameter | share |", "|:--|--:|"]
        lines += [f"| {_plain(name)} | {100 * share:.0f} % |" for name, share in shares]
    lines += ["", "## Trials", ""]
    heads = ["trial", "state", store.sweep.metric, "validations", *names, "why"]
    lines += [f"| {' | '.join(map(_plain, heads))} |", f"|{'--:|' * len(heads)}"]
    lines += [f"| {' | '.join(map(_plain, _row(store, t, names)))} |" for t in trials]
    return "\n".join([*lines, ""])


def _html(
    store: Store,
    words: Sequence[str],
    trials: Sequence[FrozenTrial],
    shares: Sequence[tuple[str, float]],
) -> str:
    style = files("bts_lightning.report").joinpath("report.css").read_text(encoding="utf-8")
    names = _varied(store)
    title = escape(f"Sweep {store.sweep.name}")
    facts = "".join(
        f"<li>{escape(name)}: {escape(text)}</li>"
        for name, text in _facts(store, words, trials).items()
    )
    heads = ["trial", "state", store.sweep.metric, "validations", *names, "why"]
    rows = "".join(
        "<tr>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + f'<td style="text-align:left;white-space:normal">{escape(why)}</td></tr>'
        for *cells, why in (_row(store, t, names) for t in trials)
    )
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    figures = "".join(f"<figure>{figure}</figure>" for figure in _figures(store, trials))
    importance = (
        f"<section><h2>Importance</h2><p>{_ABOUT_IMPORTANCE}</p>"
        f'<figure style="max-width:26rem">{draw_shares(shares)}</figure></section>'
        if shares
        else ""
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">"
        f'<meta name="color-scheme" content="light dark"><title>{title}</title>'
        f"<style>{style}</style></head><body><header><h1>{title}</h1></header><main>"
        f'<section><ul class="findings">{facts}</ul></section>'
        '<section><h2>Curves</h2><p class="note">Orange: the best; grey: pruned or failed.</p>'
        f'<div class="panels">{figures}</div></section>{importance}'
        f'<section><h2>Trials</h2><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section></main></body></html>"
    )


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
        given = [(t, _values(t)[parameter.name], _score(store, t) or 0.0) for t in seen]
        if _is_numeric(parameter):
            points = [(title(t), float(x), y, kind(t)) for t, x, y in given]
            lowest = min(x for _, x, _, _ in points)
            is_wide = lowest > 0 and max(x for _, x, _, _ in points) / lowest >= 10
            on_log = parameter.is_logarithmic or is_wide
            figures.append(draw_points(points, parameter.name, metric, on_log))
        else:
            named = [(title(t), str(x), y, kind(t)) for t, x, y in given]
            figures.append(draw_choices(named, parameter.name, metric))
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


def _plain(text: object) -> str:
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")
