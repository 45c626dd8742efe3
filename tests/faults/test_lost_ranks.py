"""One of two ranks is lost: the other ends in time and says which; what goes on ends the same.

Stopping takes the longest: a rank that says nothing may only be busy.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bts_lightning.loggers import read_metrics
from tests.tiny_training import NOT_VALIDATED, TINY, final

ROOT = Path(__file__).parents[2]
TWO = ["trainer.devices=2", "trainer.strategy=ddp"]
LIMIT = 30.0
# What the line says of the lost rank.
SAYS = {
    "kill": "was killed, or its machine is gone",
    "stop": "gave no sign of life for 15 s",
    "interrupt": "was interrupted",
    "raise": "failed: RuntimeError: raised on purpose",
}


def start(words: list[str], folder: Path, fault: dict[str, object] | None = None) -> "Running":
    hook = [str(ROOT / "tests/faults/hook")] if fault else []
    clean = {k: v for k, v in os.environ.items() if k != "BTS_RUN" and not k.startswith("PL_")}
    path = os.pathsep.join([*hook, str(ROOT)])
    wish = json.dumps(fault) if fault else ""
    more = {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "BTS_TEST_FAULT": wish}
    return Running([sys.executable, "-m", "bts_lightning", *words], folder, clean | more)


class Running:
    """A verb in a session of its own, whose processes can be counted."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        self.errors = folder / f"errors-{time.monotonic_ns()}"
        self._output = self.errors.with_suffix(".out")
        with self.errors.open("w") as errors, self._output.open("w") as output:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=output, stderr=errors,
                start_new_session=True,
                # Whoever runs tests in the background ignores Ctrl-C, and children would too.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )  # fmt: skip

    def wait_until(self, happened: Callable[[], object]) -> None:
        """Wait, however slow the machine is today, but not for one that has ended."""
        until = time.monotonic() + 200
        while not happened():
            assert time.monotonic() < until, self.errors.read_text()
            assert living(self.process.pid) or happened(), self.errors.read_text()
            time.sleep(0.02)

    def end(self, seconds: float) -> str:
        """Wait until none of its processes is left; give what was printed as errors."""
        until = time.monotonic() + seconds
        try:
            while self.process.poll() is None or living(self.process.pid):
                assert time.monotonic() < until, f"no end in sight: {self.errors.read_text()}"
                time.sleep(0.05)
        finally:
            for pid in living(self.process.pid):
                os.kill(pid, signal.SIGKILL)
        return self.errors.read_text()


def living(session: int) -> list[int]:
    """List the processes of a session, stopped ones too."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = place.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(place.parent.name))
    return found


def told(printed: str, rank: int, does: str) -> None:
    """Hold that one line names the rank, and that no other one has anything to say."""
    lines = [line for line in printed.splitlines() if line.startswith("error: ")]
    name = f"error: rank {rank} on {socket.gethostname()} {SAYS[does]}; "
    assert len(lines) == 1, printed
    assert lines[0].startswith(name), printed
    assert "gloo/" not in printed, "what gloo raises is a consequence"
    assert printed.count("Traceback") <= (does == "raise"), printed


@pytest.fixture(scope="module")
def words(phantom: Path) -> list[str]:
    """Give what trains three steps and one checkpoint an epoch, two epochs."""
    return ["train", "--allow", "tests", *TINY, *TWO, *NOT_VALIDATED, f"data.root={phantom}"]


@pytest.fixture(scope="module")
def trained(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    running = start(words, folder)
    printed = running.end(300)
    assert running.process.returncode == 0, printed
    (config,) = folder.glob("runs/*/*/config.yaml")
    return config.parent


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks up processes in /proc")
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("does", SAYS)
def test_a_training_ends_with_a_lost_rank_and_goes_on_to_the_same(
    does: str, rank: int, words: list[str], trained: Path, tmp_path: Path
) -> None:
    lost = "callbacks.lost._target_=tests.training_parts.LostAt"
    more = [lost, "callbacks.lost.step=4", f"callbacks.lost.rank={rank}"]
    running = start([*words, *more, f"callbacks.lost.does={does}"], tmp_path)
    running.wait_until(lambda: list(tmp_path.glob("runs/*/*/lost")))
    (marker,) = tmp_path.glob("runs/*/*/lost")
    began = time.monotonic()
    printed = running.end(LIMIT)
    print(f"training, rank {rank}, {does}: ended after {time.monotonic() - began:.1f} s")
    assert running.process.returncode != 0
    if does == "interrupt":
        # Saved by all of them at the same step.
        assert f"stopped by SIGINT to rank {rank} on {socket.gethostname()} in epoch 1" in printed
        assert printed.count("error: ") == 1
    else:
        told(printed, rank, does)
    again = start(["train", "--allow", "tests", str(marker.parent)], tmp_path)
    printed = again.end(300)
    assert again.process.returncode == 0, printed
    assert_same_training(marker.parent, trained)


def assert_same_training(run: Path, undisturbed: Path) -> None:
    one, two = final(undisturbed), final(run)
    assert all(torch.equal(two[name], value) for name, value in one.items())
    names = [sorted(f.name for f in (r / "checkpoints").iterdir()) for r in (undisturbed, run)]
    assert names[1] == names[0]
    curves = [read_metrics(r / "logs/metrics.csv") for r in (undisturbed, run)]
    untimed = [{k: v for k, v in c.items() if not k.startswith("speed/")} for c in curves]
    assert untimed[1] == untimed[0]


@pytest.fixture(scope="module")
def evaluated(trained: Path) -> Path:
    running = start(["evaluate", str(trained), "--part", "train"], trained)
    printed = running.end(300)
    assert running.process.returncode == 0, printed
    return trained / "evaluation" / "train"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks up processes in /proc")
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("does", SAYS)
def test_an_evaluation_ends_with_a_lost_rank_and_goes_on_to_the_same_table(
    does: str, rank: int, evaluated: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(evaluated.parents[1], run)
    shutil.rmtree(run / "evaluation")
    rows = run / "evaluation" / "train" / "rows"
    # When it writes its second case.
    fault = {"below": str(rows), "counter": str(tmp_path / "changes"), "at": 4}
    words = ["evaluate", str(run), "--part", "train"]
    running = start(words, tmp_path, {**fault, "does": does, "rank": str(rank)})
    changes = tmp_path / "changes"
    running.wait_until(lambda: changes.exists() and changes.stat().st_size >= 4)
    began = time.monotonic()
    printed = running.end(LIMIT)
    print(f"evaluation, rank {rank}, {does}: ended after {time.monotonic() - began:.1f} s")
    assert running.process.returncode != 0
    told(printed, rank, does)
    again = start(words, tmp_path)
    printed = again.end(300)
    assert again.process.returncode == 0, printed
    table = (run / "evaluation" / "train" / "cases.csv").read_bytes()
    assert table == (evaluated / "cases.csv").read_bytes()


def test_a_machine_that_nobody_joins_is_told_in_one_line(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BTS_WAIT_FOR_RANKS", "3")
    monkeypatch.setenv("NODE_RANK", "0")  # as on the first of two machines
    alone = [w for w in words if not w.startswith("trainer.devices")]
    running = start([*alone, "trainer.devices=1", "trainer.num_nodes=2"], tmp_path)
    assert re.search("^error: rank 1 of 2 did not come within 3 s; ", running.end(60), re.M)
