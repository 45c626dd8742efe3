"""The wheel works outside the repository: experiments and the page of the report travel in it."""

import os
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bts_lightning.__main__ import main
from bts_lightning.commands.pack import pack

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("build") is None, reason="needs the extra `dev`"),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the source archive, and from it the wheel, without network."""
    out = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)], out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel alone into a folder; what it depends on is that of the tests."""
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    run([*pip, "--target", str(target), str(wheel)], target)
    return target


def run(command: list[str], folder: Path, **environment: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if name != "BTS_RUN"}
    done = subprocess.run(
        command,
        cwd=folder,
        env=inherited | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def bts(words: list[str], folder: Path, installed: Path) -> str:
    return run([sys.executable, "-m", "bts_lightning", *words], folder, PYTHONPATH=str(installed))


def test_wheel_holds_what_is_not_python_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    here = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "bts_lightning").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert here <= set(names)
    assert "bts_lightning/py.typed" in names
    experiments = {file.relative_to(ROOT) for file in (ROOT / "experiments").rglob("*.yaml")}
    assert {f"bts_lightning/{file}" for file in experiments} <= set(names)
    assert {name.split("/")[0] for name in names} <= {
        "bts_lightning",
        next(name.split("/")[0] for name in names if ".dist-info/" in name),
    }


def test_the_installed_package_is_the_one_that_runs(installed: Path, tmp_path: Path) -> None:
    code = "import bts_lightning; print(bts_lightning.__file__)"
    said = run([sys.executable, "-c", code], tmp_path, PYTHONPATH=str(installed))
    assert Path(said.strip()).is_relative_to(installed)
    assert (installed / "bin" / "bts").exists()


def test_experiments_come_along_and_a_local_one_is_found_first(
    installed: Path, tmp_path: Path
) -> None:
    assert "_target_: bts_lightning.networks.a2fseg.A2FSeg" in bts(
        ["show", "a2fseg"], tmp_path, installed
    )
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "smoke.yaml").write_text("# Mine.\ntrainer: {max_epochs: 7}\n")
    assert "max_epochs: 7" in bts(["show", "a2fseg", "smoke"], tmp_path, installed)
    lines = bts(["show"], tmp_path, installed).splitlines()
    listed = dict(line.split(maxsplit=1) for line in lines if line.startswith("  "))
    assert listed["smoke"] == "Mine."
    assert listed["rfnet"].startswith("RFNet")


def test_a_package_predicts_bit_for_bit_the_same_with_the_wheel_alone(
    wheel: Path, trained: Path, phantom: Path, tmp_path: Path
) -> None:
    empty, home = tmp_path / "empty", tmp_path / "fresh"
    empty.mkdir()
    run([sys.executable, "-m", "venv", "--without-pip", str(home)], empty)
    (site,) = home.glob("lib/python*/site-packages")
    # What the wheel depends on is that of the tests; a path file leads to no editable install.
    rest = [p for p in sys.path if Path(p).is_dir() and not ROOT.is_relative_to(Path(p).resolve())]
    (site / "rest.pth").write_text("\n".join(rest))
    pip = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "install"]
    run([*pip, "--quiet", "--no-deps", "--no-index", str(wheel)], empty)
    fresh = {"PYTHONPATH": ""}
    code = "import bts_lightning; print(bts_lightning.__file__)"
    said = run([str(home / "bin" / "python"), "-c", code], empty, **fresh)
    assert Path(said.strip()).is_relative_to(home)

    case = phantom / "BraTS2021_00001"
    images = [
        f"--{m}={case / case.name}_{name}.nii.gz" for m, name in (("t1c", "t1ce"), ("t2", "t2"))
    ]
    words = [*images, "--probabilities", "--device=cpu"]
    assert main(["predict", str(trained), *words, f"--out={tmp_path / 'here.nii.gz'}"]) == 0
    model = pack(trained, tmp_path / "model.bts", evaluation="none")
    bts = str(home / "bin" / "bts")
    run([bts, "predict", str(model), *words, f"--out={tmp_path / 'there.nii.gz'}"], empty, **fresh)
    for end in (".nii.gz", "_probabilities.nii.gz"):
        here, there = (nib.load(tmp_path / f"{place}{end}") for place in ("here", "there"))
        assert np.asarray(here.dataobj).tobytes() == np.asarray(there.dataobj).tobytes()
        assert here.header.structarr.tobytes() == there.header.structarr.tobytes()
    # A machine without the data and the run unpacks it too; a flipped byte is refused there.
    assert "every part" in run([bts, "unpack", str(model)], empty, **fresh)
    spoilt = bytearray(model.read_bytes())
    spoilt[len(spoilt) // 2] ^= 1
    model.write_bytes(spoilt)
    done = subprocess.run([bts, "unpack", str(model), "again"], cwd=empty, capture_output=True)
    assert done.returncode == 2
    assert b"not as it was written" in done.stderr


def test_training_and_report_work_in_an_empty_folder(
    installed: Path, phantom: Path, tmp_path: Path
) -> None:
    words = ["a2fseg", "smoke", f"data.root={phantom}", "net.width=4", "evaluation.subsets=[flair]"]
    words += ["trainer.accelerator=cpu", "trainer.devices=1", "trainer.max_epochs=1"]
    bts(["train", *words], tmp_path, installed)
    bts(["evaluate", "a2fseg+smoke", "--device", "cpu"], tmp_path, installed)
    (report,) = tmp_path.glob("runs/a2fseg+smoke/*/evaluation/test/report.html")
    assert "</html>" in report.read_text(encoding="utf-8")
