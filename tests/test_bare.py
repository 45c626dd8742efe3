"""A plain deep-learning image can run all that there is for a GPU; here on the processor."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bts_lightning.bench.result import read_all
from tests.bare.sitecustomize import ABSENT

ROOT = Path(__file__).parents[1]
# One after the other they say what all of them say, in minutes.
TESTS = "test_training or (test_networks and unet-)"


def run(*words: str, folder: Path, data: Path) -> str:
    """Run a module without those packages."""
    path = os.pathsep.join([str(ROOT / "tests" / "bare"), str(ROOT)])
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("BTS_", "PYTEST_"))}
    environment |= {"PYTHONPATH": path, "BTS_GPU_TWIN": "cpu", "BTS_GPU_DATA": str(data)}
    done = subprocess.run(
        [sys.executable, "-P", "-m", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_packages_are_hidden(tmp_path: Path) -> None:
    for name in sorted(ABSENT):
        with pytest.raises(AssertionError, match=f"No module named {name}"):
            run(name, folder=tmp_path, data=tmp_path)


@pytest.mark.slow
def test_the_tests_for_a_gpu_pass(phantom: Path) -> None:
    words = ["pytest", "-n0", "-q", "-m", "gpu", "tests/gpu", "-k", TESTS, "-p", "no:cacheprovider"]
    assert " passed" in run(*words, folder=ROOT, data=phantom)


@pytest.mark.slow
def test_the_measurements_for_a_gpu_end(phantom: Path, tmp_path: Path) -> None:
    words = ["bench", "gpu", "a2fseg+smoke", "unet+smoke", "--device", "cpu", "--minutes", "60"]
    said = run("bts_lightning", *words, "--data", str(phantom), folder=tmp_path, data=phantom)
    results = {result.family: result for result in read_all([tmp_path / "gpu"])}
    assert list(results) == ["gpu", "loader", "step", "subsets"]
    rows = results["gpu"].tables[-1].rows
    assert [row[-1] for row in rows] == ["measured"] * 7, said
    # What stands last is printed last.
    assert said.index("What was asked") > said.index("15 subsets of one case")
    for name in ("a2fseg+smoke", "unet+smoke"):
        for family in ("step", "subsets"):
            assert any(row[0] == name for row in results[family].tables[0].rows)
    subsets = next(t for t in results["gpu"].tables if t.columns[0] == "subset")
    assert len(subsets.rows) == 15
    for file in ("gpu.md", "trainings/demo/logs/metrics.csv", "trainings/a2fseg/evaluation/test"):
        assert (tmp_path / "gpu" / file).exists(), file
