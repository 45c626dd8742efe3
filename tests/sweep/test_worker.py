"""Sweeps without an account: trials of a tiny program in place of a training, except for one."""

import errno
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path
from threading import Thread
from typing import Any
from unittest.mock import Mock
from xml.etree import ElementTree

import pytest
import yaml
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from bts_lightning.errors import ConfigError, UserError
from bts_lightning.report.screen import Screen
from bts_lightning.runs.processes import Process, reason
from bts_lightning.sweep.file import read_sweep
from bts_lightning.sweep.store import Store, _Lock, number_of
from bts_lightning.sweep.worker import run_local
from tests.tiny_training import wait_for

# Logs a curve that ends in 1 - (x - 3)², as a training would, and does what the values ask for.
PROGRAM = """
import os, signal, sys, time
from pathlib import Path
run = Path(os.environ["BTS_RUN"])
values = dict(word.split("=", 1) for word in sys.argv[1:])
x, steps = float(values["x"]), int(values.get("steps", 1))
with (run / "starts").open("a") as file:
    file.write(f"{os.getpid()} {values}\\n")
if values.get("do") == "fail":
    sys.exit("error: out of memory; lower one of: x")
if values.get("do") == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if values.get("do") == "wait" and not (run / "go").exists():
    time.sleep(60)
(run / "logs").mkdir(exist_ok=True)
(run / "logs" / "metrics.csv").write_text("step,metric,value\\n")
for step in range(1, steps + 1):
    with (run / "logs" / "metrics.csv").open("a") as file:
        file.write(f"{step},val/dice/mean,{(1 - (x - 3) ** 2) * step / steps}\\n")
    time.sleep(float(values.get("pause", 0)))
"""


def sweep_file(folder: Path, parameters: dict[str, Any], **changes: Any) -> Path:
    program = folder / "program.py"
    program.write_text(PROGRAM)
    tree = {
        "command": [sys.executable, str(program), "${args_no_hyphens}"],
        "method": "grid",
        "metric": {"name": "val/dice/mean", "goal": "maximize"},
        "parameters": {
            name: value if isinstance(value, dict) else {"values": value}
            for name, value in parameters.items()
        },
    }
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump(tree | changes, sort_keys=False))
    return file


def run(file: Path, *, cap: int | None = None, agents: int = 1) -> tuple[int, str, Store]:
    """Run a sweep beside its file; gives exit status, what was printed, and its trials."""
    text = StringIO()
    sweep, folder = read_sweep(file), file.parent / "sweep"
    console = Screen(file=text, width=200)
    code = run_local(sweep, [], folder=folder, cap=cap, places=[{}] * agents, console=console)
    return code, text.getvalue(), Store(folder, sweep, cap)


def found(store: Store, state: TrialState = TrialState.COMPLETE) -> list[tuple[Any, ...]]:
    trials = [t for t in store.trials() if t.state == state]
    return sorted((*t.user_attrs["values"].values(), t.value) for t in trials)


def starts(folder: Path) -> list[str]:
    """List the values of every trial that was ever started."""
    files = sorted((folder / "sweep" / "trials").glob("*/starts"))
    lines = [line for file in files for line in file.read_text().splitlines()]
    return [line.partition(" ")[2] for line in lines]


def test_a_grid_is_searched_and_told(tmp_path: Path):
    code, text, store = run(sweep_file(tmp_path, {"x": [1, 2, 3, 4]}), agents=2)
    assert code == 0
    assert found(store) == [(1, -3.0), (2, 0.0), (3, 1.0), (4, 0.0)]
    assert "best    trial 2, val/dice/mean 1.0000: x=3" in text
    told = (tmp_path / "sweep" / "result.md").read_text()
    assert "- best: trial 2: 1.0000 with x=3" in told
    assert "| 2 | done | 1.0000 | 1 | 3 |" in told


def test_the_page_stands_alone_and_draws_every_trial(tmp_path: Path):
    parameters = {"x": [1.0, 2.5, 3.0], "kind": ["<a>", "b"]}
    run(sweep_file(tmp_path, parameters), agents=3)
    page = (tmp_path / "sweep" / "result.html").read_text()
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    assert "<a>" not in page
    figures = [f"<svg{part.split('</svg>')[0]}</svg>" for part in page.split("<svg")[1:]]
    labels = {ElementTree.fromstring(figure).get("aria-label") for figure in figures}
    assert {"val/dice/mean over x", "val/dice/mean over kind"} < labels
    curves = next(f for f in figures if "over each validation" in f)
    assert curves.count("<title>") == 6
    # All differences come from x; the trees are a little less sure.
    assert any(label and label.startswith("Importance: x 9") for label in labels)


def test_a_failing_trial_does_not_stop_the_rest(tmp_path: Path):
    file = sweep_file(tmp_path, {"x": [3], "do": ["fail", "die", "end"]})
    code, text, store = run(file)
    assert code == 0
    assert found(store) == [(3, "end", 1.0)]
    assert "trial 0 failed: out of memory; lower one of: x" in text
    assert text.count("trial 1 was killed; it is tried again") == 2
    assert "trial 1 failed: killed, which is what the system does when memory runs out" in text
    assert "error: out of memory" not in (tmp_path / "sweep" / "result.md").read_text()


def test_the_reason_is_that_of_the_last_attempt(tmp_path: Path):
    late = "import atexit; atexit.register(print, 'wandb: Find logs'); raise OSError('late')"
    for program in ("import sys; sys.exit('error: stopped by SIGTERM')", late):
        code = Process([sys.executable, "-c", program], tmp_path, {}).wait()
    assert reason(tmp_path, code) == "OSError: late"


def test_a_sweep_in_which_all_fails_gives_up(tmp_path: Path):
    with pytest.raises(UserError, match="first 5 trials failed; the last one: out of memory"):
        run(sweep_file(tmp_path, {"x": list(range(9)), "do": ["fail"]}))
    assert len(starts(tmp_path)) == 5


def test_a_trial_that_logs_nothing_has_failed(tmp_path: Path):
    file = sweep_file(tmp_path, {"x": [3]}, metric={"name": "val/other", "goal": "minimize"})
    with pytest.raises(UserError, match=r"no trial .* has finished.*never logged val/other"):
        run(file)


def test_the_target_ends_a_sweep(tmp_path: Path):
    metric = {"name": "val/dice/mean", "goal": "maximize", "target": 0.5}
    _, _, store = run(sweep_file(tmp_path, {"x": [2, 3, 4, 5]}, metric=metric))
    assert found(store) == [(2, 0.0), (3, 1.0)]


def test_trials_that_fall_behind_are_pruned(tmp_path: Path):
    file = sweep_file(
        tmp_path,
        {"x": [3, 3.1, 3.2, 9], "steps": {"value": 40}, "pause": {"value": 0.1}},
        early_terminate={"type": "hyperband", "min_iter": 2, "eta": 2},
    )
    code, text, store = run(file, agents=4)
    assert code == 0
    assert "pruned at" in text
    pruned = [t for t in store.trials() if t.state == TrialState.PRUNED]
    assert 9 in [t.user_attrs["values"]["x"] for t in pruned]
    assert all(len(t.intermediate_values) < 40 for t in pruned)
    assert (3, 40, 0.1, 1.0) in found(store)


def test_bayes_finds_what_chance_does_not(tmp_path: Path):
    file = sweep_file(tmp_path, {"x": {"min": -30.0, "max": 30.0}}, method="bayes")
    store = Store(tmp_path / "sweep", read_sweep(file), 40)
    while job := store.claim():
        store.record(job, [-((job.values["x"] - 3) ** 2)])
        store.end(job, TrialState.COMPLETE)
    drawn = [t.user_attrs["values"]["x"] for t in store.trials()]
    assert len(drawn) == 40
    near = [abs(x - 3) < 6 for x in drawn]
    # A fifth of the range: 10 of 20 draws by chance have a probability of 0.003.
    assert sum(near[20:]) >= 10


def test_a_random_sweep_needs_an_end(tmp_path: Path):
    with pytest.raises(ConfigError, match="--count 20"):
        run(sweep_file(tmp_path, {"x": {"min": 0.0, "max": 1.0}}, method="random"))


def test_raising_the_count_goes_on(tmp_path: Path):
    file = sweep_file(tmp_path, {"x": {"min": 0.0, "max": 1.0}}, method="random")
    _, _, store = run(file, cap=2)
    first = found(store)
    _, _, store = run(file, cap=4, agents=2)
    assert len(found(store)) == 4
    assert set(first) < set(found(store))


def test_another_sweep_in_the_same_folder_is_refused(tmp_path: Path):
    run(sweep_file(tmp_path, {"x": [3]}))
    with pytest.raises(
        ConfigError,
        match=r"began with sweep\.parameters\.x\.values=\[3\], now it is \[4\]; .*--name",
    ):
        run(sweep_file(tmp_path, {"x": [4]}))


def test_a_continued_random_sweep_draws_what_an_uninterrupted_one_would(tmp_path: Path):
    file = sweep_file(tmp_path, {"x": {"min": 0.0, "max": 1.0}}, method="random")
    sweep = read_sweep(file)
    whole = Store(tmp_path / "whole", sweep, None)
    expected = [job.values["x"] for job in (whole.claim() for _ in range(4)) if job]
    drawn = []
    for _ in range(4):  # a store of its own for each, as after an interruption
        store = Store(tmp_path / "parts", sweep, None)
        job = store.claim()
        assert job is not None
        drawn.append(job.values["x"])
        store.end(job, TrialState.FAIL, "as it happens")
    assert drawn == expected


def test_a_torn_journal_is_mended(tmp_path: Path):
    file = sweep_file(tmp_path, {"x": [2, 3]})
    run(file, cap=1)
    with (tmp_path / "sweep" / "journal.log").open("a") as journal:
        journal.write('{"op_code": 4, "wor')
    _, _, store = run(file)
    assert found(store) == [(2, 0.0), (3, 1.0)]


def start(file: Path, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "bts_lightning", "sweep", "--local", "--sweep", str(file)]
    folder = ["--folder", str(file.parent), "--name", "sweep"]
    # A test run that was started in the background hands down that Ctrl-C is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [*command, *folder, *words], cwd=file.parent, stdout=subprocess.PIPE
        )
    finally:
        signal.signal(signal.SIGINT, before)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks up processes in /proc")
@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_was(tmp_path: Path):
    file = sweep_file(tmp_path, {"x": [1, 2, 3], "do": {"value": "wait"}})
    trials = tmp_path / "sweep" / "trials"
    for number in (0, 2):
        (trials / f"000{number}").mkdir(parents=True)
        (trials / f"000{number}" / "go").touch()
    worker = start(file, "--agents", "1")
    orphan = int(wait_for(trials / "0001" / "starts").split()[0])
    worker.send_signal(signal.SIGKILL)
    worker.communicate()
    assert is_running(orphan), "a training outlives its worker"
    (trials / "0001" / "go").touch()
    code, text, store = run(file)
    assert code == 0
    assert "sweep: 1 done, 1 running, 1 waiting" in text
    assert not is_running(orphan), "two would write into one run"
    # It keeps its number, which is that of its folder.
    assert [number_of(trial) for trial in store.trials()] == [0, 1, 2]
    assert "trial 1 done" in text
    assert found(store) == [(1, "wait", -3.0), (2, "wait", 0.0), (3, "wait", 1.0)]
    values = [f"{{'x': '{x}', 'do': 'wait'}}" for x in (1, 2, 2, 3)]
    assert starts(tmp_path) == values
    # It went on in its own folder, where a training has its checkpoints.
    assert len((trials / "0001" / "starts").read_text().splitlines()) == 2


def test_ctrl_c_gives_running_trials_back(tmp_path: Path):
    file = sweep_file(tmp_path, {"x": [2, 3], "do": {"value": "wait"}})
    worker = start(file, "--agents", "2")
    for number in (0, 1):
        wait_for(tmp_path / "sweep" / "trials" / f"000{number}" / "starts")
    worker.send_signal(signal.SIGINT)
    printed, _ = worker.communicate(timeout=300)
    assert worker.returncode == 130
    assert b"the same command goes on" in printed
    for number in (0, 1):
        (tmp_path / "sweep" / "trials" / f"000{number}" / "go").touch()
    _, _, store = run(file, agents=2)
    assert found(store) == [(2, "wait", 0.0), (3, "wait", 1.0)]


@pytest.mark.slow
def test_two_workers_share_a_sweep(tmp_path: Path):
    file = sweep_file(tmp_path, {"x": list(range(6)), "pause": {"value": 1.5}})
    other = start(file, "--agents", "1")
    wait_for(tmp_path / "sweep" / "trials" / "0000" / "starts", 300)
    code, text, _ = run(file)
    printed, _ = other.communicate(timeout=300)
    assert (code, other.returncode) == (0, 0)
    assert sorted(starts(tmp_path)) == [f"{{'x': '{x}', 'pause': '1.5'}}" for x in range(6)]
    assert b" done: " in printed
    assert " done: " in text


def test_a_poisonous_trial_is_not_tried_forever(tmp_path: Path):
    sweep = read_sweep(sweep_file(tmp_path, {"x": [3]}))
    started = []
    for _ in range(9):
        # Each store is a worker that dies with its trial.
        job = Store(tmp_path / "sweep", sweep, None).claim()
        if job is None:
            break
        started.append(job.values)
        (job.run / "worker.json").unlink()
    assert started == [{"x": 3}] * 3


@pytest.mark.parametrize("has_locks", [True, False])
def test_two_never_hold_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_locks: bool):
    if not has_locks:
        monkeypatch.setattr("fcntl.flock", Mock(side_effect=OSError(errno.ENOTSUP, "no locks")))
    said = []

    def wait() -> None:
        with _Lock(tmp_path / "claim"):
            said.append("second")

    with _Lock(tmp_path / "claim"):
        other = Thread(target=wait)
        other.start()
        time.sleep(0.2)
        said.append("first")
    other.join()
    assert said == ["first", "second"]


def test_the_lock_of_the_dead_holds_nobody_up(tmp_path: Path):
    store = Store(tmp_path / "sweep", read_sweep(sweep_file(tmp_path, {"x": [3]})), None)
    program = """
import sys, time
from pathlib import Path
from bts_lightning.sweep.store import _Lock
_Lock(Path(sys.argv[1])).acquire()
print("has it", flush=True)
time.sleep(600)
"""
    command = [sys.executable, "-c", program, str(store.folder / "claim")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"has it\n"
        other.kill()
    began = time.monotonic()
    assert store.claim() is not None
    assert time.monotonic() - began < 20, "Optuna's own lock is broken after 30 s"


class Death(BaseException):
    """What nobody catches, as SIGKILL."""


@pytest.mark.parametrize("is_written", [False, True])
@pytest.mark.parametrize(
    "method", ["grid", "random", pytest.param("bayes", marks=pytest.mark.slow)]
)
def test_a_worker_may_die_at_any_record_of_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, is_written: bool
):
    ends: dict[str, Any] = {"x": {"min": 0.0, "max": 1.0}, "y": {"min": 0.0, "max": 9.0}}
    values = {"x": [1, 2], "y": [3]} if method == "grid" else ends
    sweep = read_sweep(sweep_file(tmp_path, values, method=method))
    # TPE models after ten trials.
    cap = {"grid": 2, "random": 2, "bayes": 12}[method]
    appended = JournalFileBackend.append_logs
    records = 0

    def work(folder: Path, dies_at: int) -> list[tuple[Any, ...]]:
        nonlocal records
        records = 0

        def append(backend: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
            nonlocal records
            records += 1
            if records == dies_at and not is_written:
                raise Death
            appended(backend, logs)
            if records == dies_at:
                raise Death

        monkeypatch.setattr(JournalFileBackend, "append_logs", append)
        store = Store(folder, sweep, cap)
        while trial := store.claim():
            store.record(trial, [trial.values["x"] * trial.values["y"]])
            store.end(trial, TrialState.COMPLETE)
        return found(store)

    whole = work(tmp_path / "whole", 0)
    assert len(whole) == cap
    last = records
    for dies_at in range(last - 16 if method == "bayes" else 1, last + 1):
        folder = tmp_path / f"died-{dies_at}"
        with pytest.raises(Death):
            work(folder, dies_at)
        for sign in folder.glob("trials/*/worker.json"):
            sign.unlink()
        assert work(folder, 0) == whole, f"died at record {dies_at} of {last}"
