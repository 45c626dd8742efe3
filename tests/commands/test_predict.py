"""Segmenting a patient who lacks modalities."""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bts_lightning.__main__ import main
from tests.data import datasets


@pytest.fixture
def files(phantom: Path) -> dict[str, Path]:
    case = phantom / "BraTS2021_00000"
    names = {"t1": "t1", "t1c": "t1ce", "t2": "t2", "flair": "flair"}
    return {m: case / f"{case.name}_{name}.nii.gz" for m, name in names.items()}


def predict(trained: Path, *words: object) -> int:
    return main(["predict", str(trained), "--device", "cpu", *map(str, words)])


def test_a_patient_without_t1c_is_segmented_on_the_grid_of_the_images(
    trained: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "new" / "seg.nii.gz"
    given = [word for m in ("t1", "t2", "flair") for word in (f"--{m}", files[m])]
    assert predict(trained, *given, "--out", out) == 0
    image, label = nib.load(files["flair"]), nib.load(out)
    assert label.shape == image.shape
    np.testing.assert_array_equal(label.affine, image.affine)
    assert np.asarray(label.dataobj).dtype == np.uint8


def test_a_data_module_that_prepares_in_its_own_way_is_one_line(
    trained: Path,
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("bts_lightning.data.module.Recipe", lambda **settings: None)
    assert predict(trained, "--flair", files["flair"], "--out", tmp_path / "a.nii.gz") == 2
    said = capsys.readouterr().err
    assert "BratsDataModule does not say how it prepares images" in said
    assert said.count("\n") == 1


def test_the_orientation_of_the_images_is_kept(
    trained: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    assert predict(trained, "--flair", files["flair"], "--out", tmp_path / "a.nii.gz") == 0
    image = nib.load(files["flair"])
    # Left-right and back-front change places, and one axis is oblique.
    affine = image.affine[[1, 0, 2, 3]] + np.array([[0, 0, 0.2, 3], *[[0] * 4] * 3])
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), tmp_path / "flair.nii.gz")
    words = ["--flair", tmp_path / "flair.nii.gz", "--out", tmp_path / "b.nii.gz"]
    assert predict(trained, *words) == 0
    first, found = (nib.load(tmp_path / name) for name in ("a.nii.gz", "b.nii.gz"))
    np.testing.assert_allclose(found.affine, affine, atol=1e-5)
    np.testing.assert_array_equal(found.dataobj, first.dataobj)


def test_probabilities_are_written_beside_the_label_map(
    trained: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "seg.nii.gz"
    words = ["--t1c", files["t1c"], "--out", out, "--probabilities"]
    assert predict(trained, *words) == 0
    found = nib.load(tmp_path / "seg_probabilities.nii.gz").get_fdata()
    assert found.shape[:3] == nib.load(out).shape
    assert found.min() >= 0
    assert found.max() <= 1.0001


def test_a_folder_of_cases_is_segmented_with_what_each_has(
    trained: Path, phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("BraTS2021_00000", "BraTS2021_00001", "BraTS2021_00002"):
        shutil.copytree(phantom / name, tmp_path / "data" / name)
    (tmp_path / "data/BraTS2021_00001/BraTS2021_00001_t1ce.nii.gz").unlink()
    broken = tmp_path / "data/BraTS2021_00002/BraTS2021_00002_t2.nii.gz"
    broken.write_bytes(broken.read_bytes()[:500])
    # Nothing is asked of a label, so a broken one is in nobody's way.
    (tmp_path / "data/BraTS2021_00000/BraTS2021_00000_seg.nii.gz").write_text("broken")
    words = ["--folder", tmp_path / "data", "--out", tmp_path / "out"]
    assert predict(trained, *words) == 0
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert names == ["BraTS2021_00000.nii.gz", "BraTS2021_00001.nii.gz"]
    assert "BraTS2021_00002" in capsys.readouterr().out
    assert set(np.unique(nib.load(tmp_path / "out" / names[0]).dataobj)) <= {0, 1, 2, 4}


@pytest.mark.parametrize("kind", ["probabilities", "a link", "a hard link", "manifest"])
def test_nothing_that_is_given_is_overwritten(
    kind: str,
    trained: Path,
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    image = Path(shutil.copy(files["t2"], "in/seg_probabilities.nii.gz"))
    words = ["--t2", image, "--out", "in/seg.nii.gz", "--probabilities"]
    if kind == "a link":
        Path("elsewhere").symlink_to("in")
        words = ["--t2", image, "--out", f"elsewhere/{image.name}"]
    elif kind == "a hard link":
        Path("seg.nii.gz").hardlink_to(image)
        words = ["--t2", image, "--out", "seg.nii.gz"]
    elif kind == "manifest":
        # The first case is in nobody's way; nothing of it may be written either.
        shutil.copy(image, "in/a.nii.gz")
        Path("in/manifest.csv").write_text(
            f"case,t2\nfirst,a.nii.gz\nseg_probabilities,{image.name}\n"
        )
        words = ["--folder", "in", "--out", "in"]
    before = sorted((file, file.read_bytes()) for file in Path("in").iterdir())
    assert predict(trained, *words) == 2
    assert f"would overwrite {image}, which is given" in capsys.readouterr().err
    assert sorted((file, file.read_bytes()) for file in Path("in").iterdir()) == before


def test_a_decathlon_folder_keeps_images_and_labels(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = datasets.write_decathlon(tmp_path) / "Task01_BrainTumour"
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.nii.gz")}
    for folder in ("imagesTr", "labelsTr"):
        assert predict(trained, "--folder", home, "--out", home / folder) == 2
        assert "would overwrite" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.nii.gz")} == before


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--t2", "t2.nii.gz", "--out", "t2.nii.gz"], "would overwrite t2.nii.gz"),
        (
            ["--t2", "t2.nii.gz", "--flair", "t2.nii.gz", "--out", "s.nii.gz"],
            "--t2 and --flair are",
        ),
        (["--t2", "t2.nii.gz", "--out", "t2.nii.gz/s.nii.gz"], "is a file and not a folder"),
        (["--t2", "t2.nii.gz", "--folder", ".", "--out", "s.nii.gz"], "and not both"),
        (["--folder", ".", "--out", "s.nii.gz"], "go to a folder"),
    ],
)
def test_no_file_is_taken_for_another(
    words: list[str],
    line: str,
    trained: Path,
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(files["t2"], tmp_path / "t2.nii.gz")
    monkeypatch.chdir(tmp_path)
    assert predict(trained, *words) == 2
    assert line in capsys.readouterr().err
    assert (tmp_path / "t2.nii.gz").read_bytes() == files["t2"].read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["t2.nii.gz"]


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        ("truncated", "t2.nii.gz"),
        ("other grid", "flair.nii.gz"),
        ("missing", "nowhere.nii.gz"),
        ("nothing", "give the images of one patient"),
        ("no suffix", "ends in .nii.gz"),
        ("bad device", "--device"),
    ],
)
def test_bad_input_is_one_line_that_names_the_file(
    spoil: str,
    line: str,
    trained: Path,
    files: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given: dict[str, Path] = {}
    out, words = tmp_path / "seg.nii.gz", []
    for modality in ("t1", "t2", "flair"):
        given[modality] = tmp_path / f"{modality}.nii.gz"
        shutil.copy(files[modality], given[modality])
    if spoil == "truncated":
        given["t2"].write_bytes(given["t2"].read_bytes()[:400])
    elif spoil == "other grid":
        image = nib.load(given["flair"])
        cut = nib.Nifti1Image(np.asarray(image.dataobj)[:-2], image.affine)
        nib.save(cut, given["flair"])
    elif spoil == "missing":
        given["t1"] = tmp_path / "nowhere.nii.gz"
    elif spoil == "nothing":
        given = {}
    elif spoil == "no suffix":
        out = tmp_path / "seg"
    else:
        words = ["--device", "cudda"]
    images = [word for m, file in given.items() for word in (f"--{m}", file)]
    assert predict(trained, *images, "--out", out, *words) == 2
    printed = capsys.readouterr().err.strip()
    assert line in printed
    assert "case:" not in printed
    assert len(printed.splitlines()) == 1
    assert not out.exists()


def test_a_full_disk_is_named_and_keeps_no_part(
    trained: Path,
    files: dict[str, Path],
    small_disk: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (small_disk / "else").write_bytes(bytes(2**21 - 2**13))
    out = small_disk / "new" / "seg.nii.gz"
    assert predict(trained, "--t1c", files["t1c"], "--out", out) == 2
    assert capsys.readouterr().err == f"error: {out}: No space left on device\n"
    assert not list(out.parent.iterdir())
