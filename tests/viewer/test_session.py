"""What the viewer makes of a case, and in which order."""

import gzip
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bts_lightning.__main__ import main
from bts_lightning.commands.segment import Segmenter
from bts_lightning.data.layouts.find import find_cases
from bts_lightning.metrics.score import score
from bts_lightning.modalities import MODALITIES, SUBSETS, Modality, subset_name
from bts_lightning.runs.opening import open_runs
from bts_lightning.viewer.opening import open_session
from bts_lightning.viewer.session import CODES, Session
from tests.tiny_training import another


def files_of(phantom: Path, name: str) -> dict[Modality, Path]:
    (case,) = (one for one in find_cases(phantom).cases if one.name == name)
    return dict(case.images)


def predicted(run: Path, images: dict[Modality, Path], out: Path) -> bytes:
    """Give what `bts predict` writes."""
    segmenter = Segmenter(open_runs(run), "cpu", with_probabilities=False)
    return segmenter.patient(images, out).read_bytes()


def opened(session: Session, case: int = 0) -> Session:
    session.open(case)
    session.wait(case)
    return session


@pytest.fixture(scope="module")
def run(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a run of other weights than the fresh ones, whose subsets differ."""
    return another(trained, tmp_path_factory.mktemp("runs") / "uhemis" / "1", 1)


@pytest.fixture(scope="module")
def session(run: Path) -> Session:
    made = opened(open_session([run], device="cpu"))
    made.close()
    return made


def test_every_label_map_is_what_predict_writes_for_these_images(
    session: Session, run: Path, phantom: Path, tmp_path: Path
) -> None:
    name = session.patients[0].name
    images = files_of(phantom, name)
    found = set()
    segmenter = Segmenter(open_runs(run), "cpu", with_probabilities=False)
    for subset in SUBSETS[::2]:
        # A data set of one case, because its files say how label values are written.
        folder = tmp_path / subset_name(subset) / name
        folder.mkdir(parents=True)
        for modality, here in zip(MODALITIES, subset, strict=True):
            if here:
                shutil.copy(images[modality], folder)
        (file,) = segmenter.folder(folder.parent, tmp_path / "out" / subset_name(subset))
        shown = session.label_map(0, 0, subset)
        assert shown.read_bytes() == file.read_bytes(), subset_name(subset)
        found.add(gzip.decompress(shown.read_bytes()))
    assert len(found) > 1, "subsets that all say the same would prove little"


def test_images_of_different_extents_give_what_predict_gives(
    run: Path, phantom: Path, tmp_path: Path
) -> None:
    images = files_of(phantom, "BraTS2021_00000")
    for modality, axis in (("t1", 0), ("flair", 2)):
        image = nib.load(images[modality])
        voxels = np.asarray(image.dataobj).copy()
        voxels[(slice(None),) * axis + (slice(0, 20),)] = 0
        images[modality] = tmp_path / f"{modality}.nii.gz"
        nib.save(nib.Nifti1Image(voxels, image.affine), images[modality])
    session = opened(open_session([run], images=images, device="cpu"))
    session.close()
    for name in ("t1", "flair", "t1+flair", "t1c+flair", "t1+t1c+t2+flair"):
        (subset,) = (one for one in SUBSETS if subset_name(one) == name)
        some = {m: images[m] for m in name.split("+")}
        assert session.label_map(0, 0, subset).read_bytes() == predicted(
            run, some, tmp_path / "seg.nii.gz"
        ), name


def test_the_full_set_comes_first_and_progress_only_grows(run: Path, phantom: Path) -> None:
    session = open_session([run], images=files_of(phantom, "BraTS2021_00001"), device="cpu")
    session.close()
    first: list[list[str]] = []
    shares: list[float] = []
    (maker,) = session.makers
    view = session.patients[0].views[0]
    maker.make(view, lambda rows: first.append([subset_name(s) for s in rows]), shares.append)
    assert first[0] == ["t1+t1c+t2+flair"]
    sizes = [name.count("+") for names in first for name in names]
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == 15
    assert shares == sorted(shares)
    assert 0 <= shares[0] < shares[-1] <= 1


def test_what_is_measured_is_what_the_label_map_holds(session: Session) -> None:
    (state,) = session.state(0)
    case = session.patients[0].views[0]
    voxel = float(np.prod(case.geometry.spacing)) / 1000
    assert sorted(state["rows"]) == list(range(1, 16))
    for subset in SUBSETS[:3]:
        row = state["rows"][CODES[subset]]
        labels = np.asarray(nib.load(session.label_map(0, 0, subset)).dataobj)
        assert row["ml"]["WT"] == pytest.approx((labels > 0).sum() * voxel, abs=1e-3)
        assert row["ml"]["ET"] == pytest.approx((labels == 4).sum() * voxel, abs=1e-3)
        stored = np.where(labels == 4, 3, labels).astype(np.uint8)[case.geometry.slices]
        truth = np.ascontiguousarray(case.label)
        scores = score(np.ascontiguousarray(stored)[None], truth, case.geometry.spacing)
        assert list(row["dice"].values()) == pytest.approx(scores["dice"][0], abs=1e-5)
        assert list(row["hd95"].values()) == pytest.approx(scores["hd95"][0], abs=1e-5)
    assert set(state["shapley"]) == {"WT", "TC", "ET"}
    full = state["rows"][15]["dice"]
    for region, shares in state["shapley"].items():
        assert sum(shares) == pytest.approx(100 * full[region], abs=0.05)


def test_entropy_and_disagreement_are_shares_on_the_grid_of_the_scan(session: Session) -> None:
    shape = session.patients[0].views[0].geometry.shape
    heat = np.asarray(nib.load(session.entropy(0, 0, SUBSETS[-1])).dataobj)
    assert heat.shape == shape
    assert 0 < heat.max() <= 255
    said = np.asarray(nib.load(session.disagreement(0, 0)).dataobj)
    each = np.stack([np.asarray(nib.load(session.label_map(0, 0, s)).dataobj) for s in SUBSETS])
    x, y, z = np.unravel_index(said.argmax(), shape)
    most = np.bincount(each[:, x, y, z]).max()
    assert said[x, y, z] == round(255 * (15 - most) / 15)
    assert not said[(each == each[0]).all(axis=0)].any()


def test_what_is_on_disk_is_not_made_again(session: Session, run: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in (run / "view").rglob("*.nii.gz")}
    again = opened(open_session([run], device="cpu"))
    again.close()
    assert again.state(0) == session.state(0)
    assert {f: f.stat().st_mtime_ns for f in (run / "view").rglob("*.nii.gz")} == before


def test_a_case_that_is_opened_goes_first(run: Path, phantom: Path) -> None:
    session = open_session([run], device="cpu", part="train")
    session.open(0)
    session.open(1)
    session.wait(1)
    assert session.state(1)[0]["stage"] == "done"
    session.wait(0)
    session.close()


def test_weights_of_another_run_have_another_place(trained: Path, run: Path) -> None:
    one, two = (open_session([folder], device="cpu") for folder in (trained, run))
    places = [s.makers[0].kept(s.patients[0].views[0]).folder.name for s in (one, two)]
    for each in (one, two):
        each.close()
    assert places[0] != places[1]


def test_two_runs_show_one_case(trained: Path, run: Path) -> None:
    session = open_session([trained, run], device="cpu")
    assert len(set(session.names)) == 2
    opened(session).close()
    assert [state["stage"] for state in session.state(0)] == ["done", "done"]


def test_a_picture_is_the_brain_on_the_grid_of_the_scan(session: Session, phantom: Path) -> None:
    name = session.patients[0].name
    scan = nib.load(files_of(phantom, name)["t2"])
    shown = nib.Nifti1Image.from_bytes(session.picture(0, 2))
    np.testing.assert_array_equal(shown.affine, scan.affine)
    there = np.asarray(scan.dataobj) != 0
    grey = np.asarray(shown.dataobj)
    assert ((grey != 0) == there).mean() > 0.999
    assert np.corrcoef(grey[there], np.asarray(scan.dataobj)[there])[0, 1] > 0.999
    assert 0 < shown.header["cal_min"] < shown.header["cal_max"] < 32001


def test_facts_are_plain(session: Session) -> None:
    told = json.loads(json.dumps([session.facts(), session.open(0), session.state(0)]))
    facts, case, _ = told
    assert facts["subsets"]["5"] == "t1c+flair"
    assert case["regions"] == {"WT": [1, 2, 4], "TC": [1, 4], "ET": [4]}
    assert [label["value"] for label in case["labels"]] == [1, 2, 4]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["BraTS2021_0000"], "there is no case 'BraTS2021_0000' here"),
        (["one", "two"], "one and two are no runs"),
        (["--subset", "t1+pet"], "--subset: unknown modality 'pet'"),
        (["--at", "1,2"], "--at 1,2: give three numbers of a voxel"),
        (["--picture", "a.jpg"], "ends in .png"),
        (["case", "--t1", "a.nii.gz"], "give a case of the run, or the images"),
    ],
)
def test_what_cannot_be_shown_is_one_line(
    trained: Path,
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bts_lightning.commands.view.niivue_module", lambda: b"")
    assert main(["view", str(trained), *words, "--no-open"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_without_the_extra_its_name_is_said(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bts_lightning.viewer.niivue.find_spec", lambda name: None)
    assert main(["view", str(trained)]) == 2
    assert "pip install 'bts_lightning[view]'" in capsys.readouterr().err
