"""The entry point of the container, in a tree of folders as a challenge mounts it."""

import shutil
import socket
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bts_lightning.__main__ import main
from bts_lightning.commands.pack import pack

SUFFIXES = {"t1": "t1n", "t1ce": "t1c", "t2": "t2w", "flair": "t2f"}


@pytest.fixture
def tree(phantom: Path, tmp_path: Path) -> Path:
    """Give /input with five cases: two whole, two incomplete, one that cannot be read."""
    root = tmp_path / "input"
    names = [f"BraTS-GLI-0000{number}-000" for number in range(5)]
    for name, case in zip(names, sorted(phantom.glob("BraTS2021_*")), strict=False):
        (root / name).mkdir(parents=True)
        for old, new in SUFFIXES.items():
            shutil.copy(case / f"{case.name}_{old}.nii.gz", root / name / f"{name}-{new}.nii.gz")
    (root / names[1] / f"{names[1]}-t1c.nii.gz").unlink()
    for new in ("t1n", "t1c", "t2w"):
        (root / names[2] / f"{names[2]}-{new}.nii.gz").unlink()
    for file in (root / names[3]).iterdir():
        file.write_bytes(file.read_bytes()[:300])
    (root / "notes.txt").write_text("no case")
    return root


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the container has no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.usefixtures("no_network")
def test_a_broken_case_does_not_stop_the_others(
    tree: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = pack(trained, tmp_path / "model.bts", evaluation="none")
    places = [f"--{name}={tmp_path / name}" for name in ("input", "output")]
    given = {file: file.read_bytes() for file in tree.rglob("*.nii.gz")}
    assert main(["challenge", f"--model={model}", "--device=cpu", *places]) == 0
    told = capsys.readouterr().out
    written = sorted(file.name for file in (tmp_path / "output").iterdir())
    assert written == [f"BraTS-GLI-0000{number}-000.nii.gz" for number in (0, 1, 2, 4)]
    assert "left out: BraTS-GLI-00003-000" in told
    assert "00002-000.nii.gz  from flair" in told
    assert "4 of 5 cases" in told
    for name in written:
        case = name.removesuffix(".nii.gz")
        image, label = (
            nib.load(tree / case / f"{case}-t2f.nii.gz"),
            nib.load(tmp_path / "output" / name),
        )
        assert label.shape == image.shape
        np.testing.assert_array_equal(label.affine, image.affine)
        # The numbers of 2023: 3 is the enhancing tumour.
        assert set(np.unique(label.dataobj)) <= {0, 1, 2, 3}
    assert {file: file.read_bytes() for file in tree.rglob("*.nii.gz")} == given


def test_a_label_map_is_that_of_predict(tree: Path, trained: Path, tmp_path: Path) -> None:
    case = "BraTS-GLI-00001-000"
    places = [f"--{name}={tmp_path / name}" for name in ("input", "output")]
    assert main(["challenge", f"--model={trained}", "--device=cpu", *places]) == 0
    names = {"t1": "t1n", "t2": "t2w", "flair": "t2f"}
    images = [f"--{m}={tree / case / f'{case}-{name}.nii.gz'}" for m, name in names.items()]
    out = tmp_path / "seg.nii.gz"
    assert main(["predict", str(trained), *images, f"--out={out}", "--device=cpu"]) == 0
    found, expected = (
        nib.load(file).dataobj for file in (tmp_path / "output" / f"{case}.nii.gz", out)
    )
    np.testing.assert_array_equal(found, expected)


def test_one_modality_that_cannot_be_read_is_taken_for_missing(
    tree: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = "BraTS-GLI-00000-000"
    for other in [folder for folder in tree.iterdir() if folder.is_dir() and folder.name != case]:
        shutil.rmtree(other)
    file = tree / case / f"{case}-t1c.nii.gz"
    file.write_bytes(file.read_bytes()[:300])
    places = [f"--{name}={tmp_path / name}" for name in ("input", "output")]
    assert main(["challenge", f"--model={trained}", "--device=cpu", *places]) == 0
    told = capsys.readouterr().out
    assert "from t1+t2+flair" in told
    assert f"taken for missing: {file}" in told


def test_without_a_case_or_a_label_map_the_status_says_so(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [f"--{name}={tmp_path / name}" for name in ("input", "output")]
    words = ["challenge", f"--model={trained}", "--device=cpu", *places]
    assert main(words) == 2
    assert "is no folder" in capsys.readouterr().err
    (tmp_path / "input").mkdir()
    assert main(words) == 2
    assert "has no case" in capsys.readouterr().err
    (tmp_path / "input" / "empty").mkdir()
    assert main(words) == 1
    assert "left out: empty: no image is given" in capsys.readouterr().out
