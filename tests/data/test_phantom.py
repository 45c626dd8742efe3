"""The phantom: reproducible files, nested tumours, the order of brightness in each modality."""

import errno
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from bts_lightning.data.phantom import anatomy as phantom_anatomy
from bts_lightning.data.phantom.space import (
    affine,
    control_grid,
    head_grid,
    interpolate,
    smooth_noise,
)
from bts_lightning.data.phantom.write import case_files, case_name, generate_case, write_phantom
from bts_lightning.errors import DataError
from bts_lightning.modalities import MODALITIES, Modality

TINY = (48, 48, 40)
Head = tuple[dict[Modality, NDArray[np.float64]], NDArray[np.uint8]]


def _head(index: int) -> Head:
    images, label, _ = generate_case(0, index, TINY)
    return {m: x.astype(np.float64) for m, x in images.items()}, label


@pytest.fixture(scope="module")
def heads() -> list[Head]:
    return [_head(index) for index in range(8)]


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(folder.rglob("*.nii.gz"))
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_same_seed_gives_same_bytes_with_any_number_of_workers(tmp_path: Path) -> None:
    alone = write_phantom(tmp_path / "a", 2, 7, TINY, workers=1)
    together = write_phantom(tmp_path / "b", 2, 7, TINY, workers=2)
    assert _digests(alone) == _digests(together)
    assert len(_digests(alone)) == 10


@pytest.mark.slow
def test_a_script_needs_no_main_guard(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from bts_lightning.data.phantom import write_phantom\n"
        "write_phantom(Path('heads'), 2, 7, (48, 48, 40), workers=2)\n"
    )
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(_digests(tmp_path / "heads")) == 10


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks up processes in /proc")
def test_workers_end_with_the_one_that_asked_for_them(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bts_lightning", "phantom", "heads", "--size", "48x48x40"]
    parent = subprocess.Popen(command, cwd=tmp_path, start_new_session=True)
    _until(lambda: list(tmp_path.glob("heads/.BraTS2021_*.part")))
    parent.kill()
    parent.wait()
    _until(lambda: not _of_session(parent.pid))


def _until(holds: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


def _of_session(leader: int) -> list[str]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state != "Z":
                found.append(stat.parent.name)
    return found


def test_another_seed_or_index_gives_another_head() -> None:
    labels = [generate_case(*which, TINY)[1] for which in ((0, 0), (0, 1), (1, 0))]
    assert len({label.tobytes() for label in labels}) == 3


def test_files_are_those_of_brats_2021(tmp_path: Path) -> None:
    write_phantom(tmp_path / "p", 1, 0, TINY)
    names = sorted(path.name for path in (tmp_path / "p" / "BraTS2021_00000").iterdir())
    expected = [f"BraTS2021_00000_{part}.nii.gz" for part in ("flair", "seg", "t1", "t1ce", "t2")]
    assert names == expected
    paths, label = case_files(tmp_path / "p", 0)
    image = nib.Nifti1Image.from_filename(paths["t1c"])
    assert image.get_data_dtype() == np.int16
    assert image.shape == TINY
    assert nib.Nifti1Image.from_filename(label).get_data_dtype() == np.uint8
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")


def test_full_size_has_the_affine_of_brats() -> None:
    expected = np.diag([-1.0, -1.0, 1.0, 1.0])
    expected[1, 3] = 239
    np.testing.assert_array_equal(affine((240, 240, 155)), expected)


def test_a_smaller_grid_shows_the_same_head_at_its_physical_size() -> None:
    volumes, middles, brightness = [], [], []
    for size in (TINY, (80, 80, 52)):
        images, label, placed = generate_case(3, 0, size)
        voxel = abs(np.linalg.det(placed[:3, :3])) / 1000
        volumes.append([(images["t1"] > 0).sum() * voxel, (label > 0).sum() * voxel])
        brightness.append([np.median(image[image > 0]) for image in images.values()])
        middle = np.append(ndimage.center_of_mass(label > 0), 1.0)
        middles.append((placed @ middle)[:3])
    np.testing.assert_allclose(volumes[0], volumes[1], rtol=0.1)
    np.testing.assert_allclose(middles[0], middles[1], atol=2.0)
    np.testing.assert_allclose(brightness[0], brightness[1], rtol=0.05)
    assert 1100 < volumes[0][0] < 2100  # ml: a brain with the fluid around it


def test_background_is_zero_in_every_modality_at_the_same_voxels(heads: list[Head]) -> None:
    for images, label in heads:
        inside = images["t1"] > 0
        assert all(np.array_equal(image > 0, inside) for image in images.values())
        assert all(image.min() == 0 for image in images.values())
        assert not label[~inside].any()
        assert ndimage.label(inside)[1] == 1


def test_label_values_are_those_on_brats_files(heads: list[Head]) -> None:
    assert set(np.unique(np.concatenate([label.ravel() for _, label in heads]))) == {0, 1, 2, 4}


def test_enhancing_rim_encloses_necrosis(heads: list[Head]) -> None:
    """Of what touches necrosis from outside, most is the rim, which is as thin as a tiny voxel."""
    around = np.zeros(5)
    for _, label in heads:
        if (label == 4).any():
            necrosis = label == 1
            shell = ndimage.binary_dilation(necrosis) & ~necrosis
            around += np.bincount(label[shell], minlength=5)
    assert around[4] > 0.65 * around.sum()


def test_every_piece_of_oedema_belongs_to_a_core(heads: list[Head]) -> None:
    for _, label in heads:
        pieces, count = ndimage.label(label > 0)
        with_core = np.unique(pieces[(label == 1) | (label == 4)])
        assert set(with_core) == set(range(1, count + 1))


def test_some_tumours_do_not_enhance_and_some_have_several_foci(heads: list[Head]) -> None:
    cores = [np.isin(label, (1, 4)) for _, label in heads]
    assert any(
        core.any() and not (label == 4).any() for core, (_, label) in zip(cores, heads, strict=True)
    )
    assert any(ndimage.label(core, np.ones((3, 3, 3)))[1] > 1 for core in cores)


def test_volumes_are_those_of_gliomas(heads: list[Head]) -> None:
    ml = 240 * 240 * 155 / np.prod(TINY) / 1000
    whole = [np.count_nonzero(label) * ml for _, label in heads]
    assert min(whole) > 3
    assert 40 < np.median(whole) < 150
    assert max(whole) < 400


def _levels(head: Head) -> dict[Modality, dict[str, float]]:
    """Measure medians in tissues found far from any border, in units of white matter."""
    images, label = head
    healthy = (images["t1"] > 0) & ~ndimage.binary_dilation(label > 0, iterations=2)
    # T1 orders the healthy tissues: fluid, grey, white.
    t1 = images["t1"]
    low, middle, high = np.percentile(t1[healthy], (5, 35, 85))
    parts = {
        "fluid": healthy & (t1 < low),
        "grey": healthy & (np.abs(t1 - middle) < 0.05 * middle),
        "white": healthy & (t1 > high),
        "oedema": label == 2,
        "necrosis": label == 1,
        "enhancing": label == 4,
    }
    return {
        m: {
            name: float(np.median(x[part]) / np.median(x[parts["white"]]))
            for name, part in parts.items()
            if part.sum() >= 20
        }
        for m, x in images.items()
    }


@pytest.fixture(scope="module")
def levels(heads: list[Head]) -> dict[Modality, dict[str, float]]:
    """Median over cases of the brightness of each tissue."""
    measured = [_levels(head) for head in heads]
    names = ("fluid", "grey", "white", "oedema", "necrosis", "enhancing")
    return {
        m: {n: float(np.median([x[m][n] for x in measured if n in x[m]])) for n in names}
        for m in MODALITIES
    }


def test_t1_orders_fluid_grey_white_and_hardly_shows_oedema(
    levels: dict[Modality, dict[str, float]],
) -> None:
    t1 = levels["t1"]
    assert t1["fluid"] < t1["grey"] < t1["white"]
    assert t1["grey"] * 0.9 < t1["oedema"] < t1["white"]


def test_t1c_alone_shows_the_enhancing_rim(levels: dict[Modality, dict[str, float]]) -> None:
    t1c = levels["t1c"]
    assert t1c["necrosis"] < t1c["oedema"] < t1c["white"] < t1c["enhancing"]
    assert t1c["enhancing"] > 1.15
    for other in ("t1", "t2", "flair"):
        seen = levels[other]  # type: ignore[index]
        assert min(seen["oedema"], seen["necrosis"]) * 0.85 < seen["enhancing"]
        assert seen["enhancing"] < max(seen["oedema"], seen["necrosis"]) * 1.15


def test_t2_shows_fluid_and_oedema_bright_and_white_matter_dark(
    levels: dict[Modality, dict[str, float]],
) -> None:
    t2 = levels["t2"]
    assert t2["white"] < t2["grey"] < t2["oedema"] < t2["fluid"]
    assert t2["oedema"] < t2["necrosis"]


def test_flair_suppresses_fluid_and_shows_oedema_brightest(
    levels: dict[Modality, dict[str, float]],
) -> None:
    flair = levels["flair"]
    assert flair["fluid"] < flair["white"] < flair["grey"] < flair["necrosis"] < flair["oedema"]


def test_no_threshold_finds_the_rim_in_t1c(heads: list[Head]) -> None:
    """Vessels, dura and weak enhancement overlap: even the best threshold of each case is poor."""
    best = []
    for images, label in heads:
        truth, t1c = label == 4, images["t1c"]
        if truth.any():
            guesses = [
                t1c > level for level in np.percentile(t1c[t1c > 0], np.arange(80, 100, 0.5))
            ]
            best.append(max(2 * (g & truth).sum() / (g.sum() + truth.sum()) for g in guesses))
    assert np.mean(best) < 0.85


def test_cases_that_are_there_are_kept_and_missing_ones_added(tmp_path: Path) -> None:
    out = write_phantom(tmp_path / "p", 1, 0, TINY)
    before = case_files(out, 0)[1].stat().st_mtime_ns
    left = out / f".{case_name(1)}.part"  # as after a kill in the middle of a case
    left.mkdir()
    write_phantom(out, 2, 0, TINY, workers=1)
    assert case_files(out, 0)[1].stat().st_mtime_ns == before
    assert case_files(out, 1)[1].is_file()
    assert not left.exists()


def test_a_disk_without_locks_is_written_to_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    other = tmp_path / f".{case_name(1)}.4711.part"  # perhaps of a process that goes on writing
    other.mkdir()
    write_phantom(tmp_path, 1, 0, TINY)
    assert case_files(tmp_path, 0)[1].is_file()
    assert other.exists()


def test_a_folder_with_other_things_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(DataError, match=r"not empty.*thesis\.tex"):
        write_phantom(tmp_path, 1, 0, TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(("seed", "size"), [(1, TINY), (0, (32, 32, 32))])
def test_a_phantom_of_other_parameters_is_refused(
    tmp_path: Path, seed: int, size: tuple[int, int, int]
) -> None:
    (tmp_path / "phantom.json").write_text(json.dumps({"seed": 0, "size": TINY, "recipe": 1}))
    with pytest.raises(DataError, match="another phantom"):
        write_phantom(tmp_path, 1, seed, size)


def test_fewer_cases_than_the_folder_holds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "phantom.json").write_text(json.dumps({"seed": 0, "size": TINY, "recipe": 1}))
    (tmp_path / case_name(3)).mkdir()
    with pytest.raises(DataError, match="BraTS2021_00003"):
        write_phantom(tmp_path, 3, 0, TINY)


@pytest.mark.parametrize("size", [(8, 48, 40), (480, 480, 310)])
def test_impossible_sizes_are_refused_before_anything_is_made(
    tmp_path: Path, size: tuple[int, int, int]
) -> None:
    with pytest.raises(DataError, match="96x96x80"):
        write_phantom(tmp_path / "p", 1, 0, size)
    assert not (tmp_path / "p").exists()


def test_a_nilearn_without_the_maps_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nilearn").mkdir()
    (tmp_path / "nilearn" / "__init__.py").touch()
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.delitem(__import__("sys").modules, "nilearn", raising=False)
    phantom_anatomy.load_atlas.cache_clear()
    with pytest.raises(DataError, match="mni_icbm152"):
        phantom_anatomy.load_atlas()


def test_preview_shows_a_row_for_each_case(tmp_path: Path) -> None:
    write_phantom(tmp_path / "p", 2, 0, TINY, preview=True, workers=1)
    with Image.open(tmp_path / "p" / "preview.png") as sheet:
        assert sheet.size == (5 * 240, 18 + 2 * 240)
        assert np.asarray(sheet).std() > 20


def test_spline_of_a_plane_is_the_plane() -> None:
    grid = head_grid((30, 24, 20))
    plane = (lambda x, y, z: 2 * x - y + 0.5 * z + 3)(*control_grid(7.0).mesh())
    expected = (lambda x, y, z: 2 * x - y + 0.5 * z + 3)(*grid.mesh())
    np.testing.assert_allclose(interpolate(plane, 7.0, grid), expected, rtol=1e-4, atol=1e-3)


def test_smooth_noise_is_one_field_at_every_resolution() -> None:
    fine = smooth_noise(np.random.default_rng(1), head_grid((240, 240, 155)), 20.0)
    coarse = smooth_noise(np.random.default_rng(1), head_grid((80, 80, 31)), 20.0)
    np.testing.assert_allclose(fine[1::3, 1::3, 2::5], coarse, atol=1e-3)
    assert fine.std() == pytest.approx(1, abs=0.1)
