"""Processes that run transforms: what goes wrong in them ends a training, and none is left."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torchio

from bts_lightning.data.patches import PatchLoader
from bts_lightning.data.samples import PatchDataset
from bts_lightning.errors import ConfigError
from tests.data import broken
from tests.data.arrays import four_cases
from tests.tiny_training import NOT_VALIDATED, TINY

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
AT = r"the patch at \(\d+, \d+, \d+\) of case \w+"
ENDS = {
    "Broken": rf"data.transforms.it \(Broken\) failed on {AT}: ValueError: boom and more",
    "Leaver": rf"data.transforms.it \(Leaver\) failed on {AT}: SystemExit: 3",
    "Killer": rf"data.transforms.it \(Killer\) ended its process by SIGKILL, .* on {AT}",
    "Sleeper": rf"data.transforms.it \(Sleeper\) did not return within 1 s on {AT}; allow more .*",
}


def children() -> list[str]:
    listed = ["ps", "-o", "pid=,stat=", "--ppid", str(os.getpid())]
    lines = subprocess.run(listed, capture_output=True, text=True, check=False).stdout.splitlines()
    return [line for line in lines if "Z" not in line]


@pytest.mark.parametrize("name", ENDS)
def test_what_goes_wrong_in_a_process_is_one_line_and_leaves_none(name: str) -> None:
    transforms = {"fine": torchio.RandomFlip(), "it": getattr(broken, name)()}
    before = len(children())
    patches = PatchDataset(four_cases(), patch=8, transforms=transforms)
    with pytest.raises(ConfigError, match=f"^{ENDS[name]}$"):
        list(PatchLoader(patches, workers=2, seconds_per_transform=1))
    assert len(children()) == before


def test_processes_end_with_an_epoch_that_is_left_in_the_middle() -> None:
    patches = PatchDataset(four_cases(), patch=8, transforms={"it": torchio.RandomFlip()})
    before = len(children())
    batches = iter(PatchLoader(patches, workers=2))
    next(batches)
    assert len(children()) == before + 2
    batches.close()  # type: ignore[attr-defined]
    assert len(children()) == before


def left(group: int) -> str:
    """List what still runs of a process group."""
    listed = subprocess.run(
        ["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=True
    )
    return "".join(
        line
        for line in listed.stdout.splitlines(keepends=True)
        if int(line.split()[0]) == group and "Z" not in line.split()[1]
    )


def training(folder: Path, phantom: Path, name: str, *more: str) -> subprocess.Popen[str]:
    words = [*TINY, *NOT_VALIDATED, f"data.root={phantom}", "data.workers=2", *more]
    words += [f"data.transforms.it._target_=tests.data.broken.{name}"]
    return subprocess.Popen(
        [sys.executable, "-m", "bts_lightning", "train", "--allow", "tests", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Broken", "Killer", "Sleeper"])
def test_a_broken_transform_ends_a_training_with_a_line_and_status_2(
    name: str, phantom: Path, tmp_path: Path
) -> None:
    began = time.monotonic()
    process = training(tmp_path, phantom, name)
    _, errors = process.communicate(timeout=120)
    assert time.monotonic() - began < 60
    line = ENDS[name].replace("1 s", "30 s")
    assert re.search(f"^error: {line}$", errors, re.MULTILINE), errors
    assert "Traceback" not in errors
    assert process.returncode == 2
    assert left(process.pid) == ""


@pytest.mark.slow
def test_no_transform_outlives_a_training_that_is_killed(phantom: Path, tmp_path: Path) -> None:
    process = training(tmp_path, phantom, "Sleeper")
    until = time.monotonic() + 60
    while left(process.pid).count("\n") < 3:
        assert time.monotonic() < until, "its two workers never came"
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    time.sleep(1)
    assert left(process.pid) == ""
