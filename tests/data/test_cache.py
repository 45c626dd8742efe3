import gzip
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import nibabel as nib
import numpy as np
import pytest

from bts_lightning.data.cache import storage
from bts_lightning.data.cache.geometry import box_around, grown
from bts_lightning.data.cache.normalise import Recipe
from bts_lightning.data.cache.prediction import write_probabilities
from bts_lightning.data.cache.prepare import (
    CachedCase,
    build,
    case_of,
    fingerprint,
    prepare,
    write_prediction,
)
from bts_lightning.data.cache.ready import load_case
from bts_lightning.data.layouts.find import find_cases
from bts_lightning.errors import DataError
from bts_lightning.files import sha256, write_whole
from tests.data import datasets
from tests.data.datasets import AFFINE, SIZE, brain, tumour, volume, write_case, write_image

# Prepare from another process and say how many cases it built itself.
PREPARE = """
import sys
from bts_lightning.data.cache import build
print(build(sys.argv[1], sys.argv[2], workers=1).built)
"""


def test_each_modality_is_scaled_by_its_own_brain(tmp_path: Path) -> None:
    case = prepare(datasets.write_brats2021(tmp_path, cases=1))[0]
    inside = brain()[case.geometry.slices]
    for channel in range(4):
        values = volume(channel)[brain()].astype(np.float64)
        expected = (volume(channel)[case.geometry.slices] - values.mean()) / values.std()
        np.testing.assert_allclose(case.image[channel][inside], expected[inside], atol=2e-3)
        assert not case.image[channel][~inside].any()


def test_other_modalities_cannot_change_one_bit_of_this_one(tmp_path: Path) -> None:
    write_case(tmp_path / "all" / "BraTS2021_00000")
    write_case(tmp_path / "one" / "BraTS2021_00000", modalities=["t2"])
    (complete,), (alone,) = prepare(tmp_path / "all"), prepare(tmp_path / "one")
    np.testing.assert_array_equal(complete.image[2], alone.image[2])
    assert alone.available == (False, False, True, False)
    assert not alone.image[[0, 1, 3]].any()


def test_box_holds_the_brain_and_nothing_more(tmp_path: Path) -> None:
    case = prepare(datasets.write_brats2021(tmp_path, cases=1))[0]
    where = np.argwhere(brain())
    assert case.geometry.box == tuple(zip(where.min(0), where.max(0) + 1, strict=True))
    assert case.image.shape == (4, *(high - low for low, high in case.geometry.box))


def test_truth_outside_the_brain_is_not_cut_off(tmp_path: Path) -> None:
    label = tumour()
    label[0, 0, 0] = 2
    write_case(tmp_path / "BraTS2021_00000", label=label)
    case = prepare(tmp_path)[0]
    assert case.label is not None
    assert np.count_nonzero(case.label) == np.count_nonzero(label)


def test_uncropped_recipe_keeps_the_whole_grid(tmp_path: Path) -> None:
    datasets.write_brats2021(tmp_path, cases=1)
    (whole,), (cut,) = prepare(tmp_path, crop="none"), prepare(tmp_path)
    assert whole.image.shape == (4, *SIZE)
    np.testing.assert_array_equal(whole.image, cut.geometry.uncrop(cut.image))


def test_legacy_recipe_scales_all_voxels_by_the_joint_brain(tmp_path: Path) -> None:
    home = write_case(tmp_path / "BraTS2021_00000", modalities=["t1"])
    part = np.where(np.arange(SIZE[0])[:, None, None] < 10, volume(2), 0)
    write_image(home / "BraTS2021_00000_t2.nii.gz", part)
    case = prepare(tmp_path, normalisation="legacy_rfnet")[0]
    values = part[brain()].astype(np.float64)
    expected = (part - values.mean()) / values.std()
    # Grown towards 128 voxels, so this small grid is kept whole.
    np.testing.assert_allclose(case.image[2], expected, atol=2e-3)


def test_minmax_scales_the_whole_volume(tmp_path: Path) -> None:
    home = write_case(tmp_path / "BraTS2021_00000", modalities=["t1"])
    image = volume(2)
    image[0, 0, 0] = -5  # outside the brain it counts too
    write_image(home / "BraTS2021_00000_t1.nii.gz", image)
    case = prepare(tmp_path, normalisation="minmax", crop="none")[0]
    expected = (image + 5) / (image.max() + 5)
    np.testing.assert_allclose(case.image[0], expected, atol=2e-3)


def test_percentiles_of_the_brain_become_0_and_1(tmp_path: Path) -> None:
    home = write_case(tmp_path / "BraTS2021_00000", modalities=["t1"])
    image = np.zeros(SIZE)
    image[5:10, 5:10, 5:9] = np.arange(100).reshape(5, 5, 4) + 1  # 1 to 100
    write_image(home / "BraTS2021_00000_t1.nii.gz", image)
    case = prepare(tmp_path, normalisation="percentiles", crop="none")[0]
    low, high = 1.99, 99.01
    expected = ((image - low) / (high - low)).clip(0, 1)
    np.testing.assert_allclose(case.image[0], expected, atol=1e-3)


def test_a_class_that_files_do_not_number_is_written_as_necrosis(tmp_path: Path) -> None:
    write_case(tmp_path / "BraTS2021_00000")
    case = prepare(tmp_path, scheme="brats2015")[0]
    written = case.geometry.in_file(np.arange(5, dtype=np.uint8))
    assert written.tolist() == [0, 1, 2, 1, 4]


def test_nnunets_recipe_counts_the_holes_of_the_joint_brain_in(tmp_path: Path) -> None:
    home = write_case(tmp_path / "BraTS2021_00000", modalities=["t1"])
    hollow = np.where(np.arange(SIZE[0])[:, None, None] < 10, volume(2), 0)
    for name in ("t1", "t2"):  # a hole in the middle of both
        image = volume(0) if name == "t1" else hollow.copy()
        image[10, 9, 8] = 0
        write_image(home / f"BraTS2021_00000_{name}.nii.gz", image)
    case = prepare(tmp_path, normalisation="legacy_nnunet")[0]
    inside = case.geometry.uncrop(np.ones(case.image.shape[1:]))
    hollow[10, 9, 8] = 0
    values = hollow[brain()].astype(np.float64)
    expected = np.where(brain(), (hollow - values.mean()) / values.std(), 0)
    found = case.geometry.uncrop(case.image[2])
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert found[10, 9, 8] != 0
    assert inside[10, 9, 8]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((10, 20), (5, 25)),
        ((0, 10), (0, 20)),
        ((35, 40), (20, 40)),
        ((5, 35), (5, 35)),
    ],
)
def test_box_grows_around_its_middle_within_the_grid(
    box: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert grown((box, box, box), (40, 40, 40), 20) == (expected,) * 3
    assert grown((box, box, box), (40, 40, 12), 20)[2][1] <= 40


def test_box_of_nothing_is_everything() -> None:
    assert box_around(np.zeros((3, 4, 5), dtype=np.bool_)) == ((0, 3), (0, 4), (0, 5))


def test_extreme_voxels_stay_finite(tmp_path: Path) -> None:
    values = volume(0).astype(np.float32)
    values[10, 9, 8] = 3e38
    write_image(tmp_path / "BraTS2021_00000" / "BraTS2021_00000_t1.nii", values)
    for normalisation in ("zscore", "legacy_rfnet"):
        recipe = Recipe(normalisation=normalisation)
        assert np.isfinite(load_case(find_cases(tmp_path).cases[0], recipe).image).all()


@pytest.mark.parametrize("factor", [1e300, 1.7e305, 1e-310])
def test_values_without_a_deviation_are_a_fault(tmp_path: Path, factor: float) -> None:
    write_case(tmp_path / "BraTS2021_00001")
    values = volume(0) * factor
    file = write_image(tmp_path / "BraTS2021_00000" / "BraTS2021_00000_t1.nii", values)
    (fault,) = build(tmp_path).faults
    assert (fault.case, fault.file) == ("BraTS2021_00000", file)
    assert "for a mean and a deviation" in fault.reason


def test_a_contrast_on_a_large_offset_is_kept(tmp_path: Path) -> None:
    for name, values in (("0", volume(0) * 1e-6 + 1e7 * brain()), ("1", volume(0) * 1.0)):
        write_image(tmp_path / f"BraTS2021_{name}" / f"BraTS2021_{name}_t1.nii", values)
    high, low = prepare(tmp_path)
    np.testing.assert_allclose(high.image[0], low.image[0], atol=2e-3)


def test_label_volumes_and_foreground_agree(tmp_path: Path) -> None:
    case = prepare(datasets.write_brats2021(tmp_path, cases=1))[0]
    assert case.label is not None
    assert case.label.dtype == np.uint8
    assert case.volumes_ml == {"WT": 0.056, "TC": 0.036, "ET": 0.028}
    rows = np.array(case.foreground, dtype=np.int64)
    assert np.bincount(rows[:, 0]).tolist() == [0, 8, 20, 28]
    np.testing.assert_array_equal(case.label[tuple(rows[:, 1:].T)], rows[:, 0])


def test_foreground_of_a_large_tumour_is_an_even_sample(tmp_path: Path) -> None:
    size = (40, 40, 40)
    write_image(tmp_path / "BraTS2021_00000" / "BraTS2021_00000_t1.nii", volume(0, size))
    label = np.where(brain(size), 2, 0).astype(np.uint8)
    write_image(tmp_path / "BraTS2021_00000" / "BraTS2021_00000_seg.nii", label)
    rows = prepare(tmp_path)[0].foreground
    assert rows.shape == (10_000, 4)
    assert len(np.unique(rows, axis=0)) == 10_000
    # The middle of the brain is the middle of the sample, to a tenth of a voxel.
    middle = np.argwhere(brain(size)).mean(axis=0) - np.argwhere(brain(size)).min(axis=0)
    np.testing.assert_allclose(rows[:, 1:].mean(axis=0), middle, atol=0.1)


def test_case_without_a_label_is_kept_as_such(tmp_path: Path) -> None:
    write_case(tmp_path / "BraTS2021_00000")
    case = prepare(tmp_path)[0]
    assert (case.label, case.volumes_ml, case.is_labelled) == (None, None, False)
    assert case.foreground.shape == (0, 4)


def test_arrays_are_mapped_and_cases_travel_between_processes(tmp_path: Path) -> None:
    case = prepare(datasets.write_brats2021(tmp_path, cases=1))[0]
    assert isinstance(case.image, np.memmap)
    again: CachedCase = pickle.loads(pickle.dumps(case))
    np.testing.assert_array_equal(again.image, case.image)


def test_cases_hold_no_files_open(tmp_path: Path) -> None:
    case = prepare(datasets.write_brats2021(tmp_path, cases=1))[0]
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("needs /proc")
    before = len(list(descriptors.iterdir()))
    assert float(case.image.max()) > 0
    assert len(list(descriptors.iterdir())) == before


def test_finished_cases_are_not_built_again(tmp_path: Path) -> None:
    datasets.write_brats2021(tmp_path)
    assert build(tmp_path).built == 3
    before = _tree(tmp_path / ".bts_cache")
    assert build(tmp_path).built == 0
    assert _tree(tmp_path / ".bts_cache") == before


def test_changed_file_rebuilds_its_case_alone(tmp_path: Path) -> None:
    datasets.write_brats2021(tmp_path)
    prepare(tmp_path)
    changed = tmp_path / "BraTS2021_00001" / "BraTS2021_00001_t1.nii.gz"
    write_image(changed, volume(99))
    assert build(tmp_path).built == 1
    fresh = prepare(tmp_path, tmp_path / "elsewhere")
    for ours, new in zip(prepare(tmp_path), fresh, strict=True):
        np.testing.assert_array_equal(ours.image, new.image)


def test_label_that_arrives_later_is_taken_up(tmp_path: Path) -> None:
    home = write_case(tmp_path / "BraTS2021_00000")
    assert prepare(tmp_path)[0].label is None
    write_image(home / "BraTS2021_00000_seg.nii.gz", tumour())
    assert prepare(tmp_path)[0].label is not None


def test_touched_file_with_the_same_bytes_is_not_built_again(tmp_path: Path) -> None:
    datasets.write_brats2021(tmp_path, cases=1)
    image = prepare(tmp_path)[0].folder / "image.npy"
    before = image.stat().st_ino
    os.utime(tmp_path / "BraTS2021_00000" / "BraTS2021_00000_t1.nii.gz", ns=(1, 1))
    prepare(tmp_path)
    assert image.stat().st_ino == before
    assert build(tmp_path).built == 0


def test_exchanged_manifest_columns_rebuild(tmp_path: Path) -> None:
    for seed, name in enumerate(("a.nii.gz", "b.nii.gz")):
        write_image(tmp_path / name, volume(seed))
    datasets.write_manifest(tmp_path, [{"case": "x", "t1": "a.nii.gz", "t2": "b.nii.gz"}])
    before = np.array(prepare(tmp_path)[0].image)
    datasets.write_manifest(tmp_path, [{"case": "x", "t1": "b.nii.gz", "t2": "a.nii.gz"}])
    np.testing.assert_array_equal(prepare(tmp_path)[0].image, before[[2, 1, 0, 3]])


def test_new_version_of_the_recipe_rebuilds(tmp_path: Path) -> None:
    datasets.write_brats2021(tmp_path)
    build(tmp_path)
    assert build(tmp_path, recipe=replace(Recipe(), version=99)).built == 3


def test_recipes_live_side_by_side(tmp_path: Path) -> None:
    datasets.write_brats2021(tmp_path)
    prepare(tmp_path)
    prepare(tmp_path, normalisation="legacy_rfnet")
    assert build(tmp_path).built == 0


@pytest.mark.parametrize("name", ["image.npy", "label.npy", "case.json"])
def test_damaged_cache_is_mended(tmp_path: Path, name: str) -> None:
    datasets.write_brats2021(tmp_path, cases=2)
    folder = prepare(tmp_path)[0].folder
    before = _tree(tmp_path / ".bts_cache")
    (folder / name).write_bytes((folder / name).read_bytes()[:-10])
    assert build(tmp_path).built == 1
    assert _tree(tmp_path / ".bts_cache") == before


@pytest.mark.parametrize("name", ["image.npy", "label.npy", "foreground.npy"])
def test_one_bit_of_an_array_is_seen(tmp_path: Path, name: str) -> None:
    file = prepare(datasets.write_brats2021(tmp_path, cases=2))[0].folder / name
    before, times = _tree(tmp_path / ".bts_cache"), file.stat()
    changed = bytearray(file.read_bytes())
    changed[-3] ^= 1
    file.write_bytes(changed)
    assert build(tmp_path).built == 1
    assert _tree(tmp_path / ".bts_cache") == before
    # A disk that fails leaves the time as it was: only reading shows it.
    file.write_bytes(changed)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert build(tmp_path).built == 0
    assert build(tmp_path, verify=True).built == 1
    assert _tree(tmp_path / ".bts_cache") == before
    assert build(tmp_path, verify=True).built == 0


def test_a_copied_cache_is_read_once_and_not_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = prepare(datasets.write_brats2021(tmp_path, cases=1))[0].folder
    for file in folder.glob("*.npy"):
        os.utime(file, ns=(7, 7))
    read: list[Path] = []
    monkeypatch.setattr(storage, "sha256", lambda file: read.append(file) or sha256(file))
    assert [build(tmp_path).built, build(tmp_path).built] == [0, 0]
    assert sorted(file.name for file in read) == ["foreground.npy", "image.npy", "label.npy"]


@pytest.mark.parametrize(
    "text", ["[]", "word", "", "5", '{\n "cache": 1,\n "name": "x"\n}', '{\n "cache": 1,']
)
def test_a_description_that_is_none_is_told_or_mended(tmp_path: Path, text: str) -> None:
    case = prepare(datasets.write_brats2021(tmp_path, cases=1))[0]
    before = _tree(tmp_path / ".bts_cache")
    (case.folder / "case.json").write_text(text)
    with pytest.raises(DataError, match=r"case\.json describes no cached case .* prepare again"):
        _ = CachedCase(case.folder).name
    if '"cache": 1' in text:
        assert build(tmp_path).built == 1
        assert _tree(tmp_path / ".bts_cache") == before
    else:
        with pytest.raises(DataError, match="was not made by this version"):
            build(tmp_path)


@pytest.mark.parametrize(
    "array",
    [
        np.array([{}, None], dtype=object),
        np.zeros((4, 2, 2, 2), dtype=np.float16),
        np.zeros((4, *SIZE), dtype=np.float32),
    ],
    ids=["pickle", "shape", "type"],
)
def test_another_array_is_not_read(tmp_path: Path, array: Any) -> None:
    case = prepare(datasets.write_brats2021(tmp_path, cases=1))[0]
    np.save(case.folder / "image.npy", array)
    with pytest.raises(DataError, match=r"image\.npy .*; prepare again"):
        _ = case.image
    (case.folder / "image.npy").unlink()
    os.mkfifo(case.folder / "image.npy")
    with pytest.raises(DataError, match=r"image\.npy cannot be read .* not a regular file"):
        _ = case.image


@pytest.mark.parametrize("name", ["", "zscore", "zscore/.work", "zscore/.work/BraTS2021_00000"])
def test_a_file_where_the_cache_has_a_folder_is_told(tmp_path: Path, name: str) -> None:
    datasets.write_brats2021(tmp_path, cases=1)
    file = write_whole(tmp_path / ".bts_cache" / name, "mine")
    with pytest.raises(DataError, match=f"{file} is no folder"):
        prepare(tmp_path)
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("cache", "told"),
    [
        ("file/below", "file is no folder"),
        ("a\0b", "no folder can be called"),
        ("~nobody-has-this-name/x", "not known where this home folder lies"),
    ],
)
def test_an_impossible_place_is_told(tmp_path: Path, cache: str, told: str) -> None:
    datasets.write_brats2021(tmp_path / "data", cases=1)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match=told):
        prepare(tmp_path / "data", cache if cache.startswith("~") else f"{tmp_path}/{cache}")


def test_the_lock_is_a_file(tmp_path: Path) -> None:
    datasets.write_brats2021(tmp_path, cases=1)
    work = tmp_path / ".bts_cache" / "zscore" / ".work" / "BraTS2021_00000"
    (work / "lock").mkdir(parents=True)
    with pytest.raises(DataError, match="lock is no file"):
        prepare(tmp_path)


def test_two_data_sets_share_a_place_without_mixing(tmp_path: Path) -> None:
    write_case(tmp_path / "a" / "set" / "BraTS2021_00000", seed=0)
    write_case(tmp_path / "b" / "set" / "BraTS2021_00000", seed=1)
    (first,) = prepare(tmp_path / "a" / "set", tmp_path / "cache")
    (second,) = prepare(tmp_path / "b" / "set", tmp_path / "cache")
    assert first.folder != second.folder


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_data_set_is_cached_for_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = datasets.write_brats2021(tmp_path / "data", cases=1)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    root.chmod(0o555)
    try:
        (case,) = prepare(root)
    finally:
        root.chmod(0o755)
    assert case.folder.is_relative_to(tmp_path / "home" / ".cache" / "bts_lightning")


def test_killed_prepare_continues_to_the_same_bytes(tmp_path: Path) -> None:
    _write_large(tmp_path / "data", cases=8)
    prepare(tmp_path / "data", tmp_path / "undisturbed")
    process = _start(tmp_path / "data", tmp_path / "cache")
    while len(list((tmp_path / "cache").glob("*/zscore/*/case.json"))) < 2:
        assert process.poll() is None, "it must not end before it is killed"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    continued = build(tmp_path / "data", tmp_path / "cache")
    assert 0 < continued.built <= 6
    assert _tree(tmp_path / "cache") == _tree(tmp_path / "undisturbed")


def test_remains_of_a_killed_process_are_cleared(tmp_path: Path) -> None:
    datasets.write_brats2021(tmp_path, cases=1)
    work = tmp_path / ".bts_cache" / "zscore" / ".work" / "BraTS2021_00000"
    part = f".case.{4711:032x}.part"
    for name in (part, f"{part}.outdated", "mine"):
        (work / name).mkdir(parents=True)
        (work / name / "image.npy").write_bytes(b"half")
    (work / part / f".label.npy.{4711:032x}.part").write_bytes(b"half")
    prepare(tmp_path)
    assert sorted(file.name for file in work.iterdir()) == ["lock", "mine"]


@pytest.mark.parametrize("name", ["", "zscore", "zscore/BraTS2021_00000", "zscore/.work"])
def test_a_cache_follows_no_link(tmp_path: Path, name: str) -> None:
    root = datasets.write_brats2021(tmp_path / "data", cases=1)
    mine = tmp_path / "mine"
    for folder in ("zscore/BraTS2021_00000", "BraTS2021_00000"):
        write_whole(mine / folder / "thesis.tex", "mine")
    write_whole(mine / "thesis.tex", "mine")
    link = root / ".bts_cache" / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(mine)
    before = _tree(mine)
    with pytest.raises(DataError, match=f"{link} is a link"):
        prepare(root)
    assert _tree(mine) == before
    # Where the user says that it lies, there may be a link.
    (tmp_path / "cache").symlink_to(mine)
    assert prepare(root, tmp_path / "cache")[0].folder.is_dir()


def test_a_case_with_a_link_for_an_array_is_not_current(tmp_path: Path) -> None:
    folder = prepare(datasets.write_brats2021(tmp_path, cases=1))[0].folder
    (folder / "image.npy").rename(tmp_path / "image.npy")
    (folder / "image.npy").symlink_to(tmp_path / "image.npy")
    with pytest.raises(DataError, match="was not made by this version"):
        prepare(tmp_path)


@pytest.mark.parametrize("spoil", ["no case.json", "another version", "a folder more"])
def test_what_others_made_is_not_replaced(tmp_path: Path, spoil: str) -> None:
    folder = prepare(datasets.write_brats2021(tmp_path, cases=1))[0].folder
    write_image(tmp_path / "BraTS2021_00000" / "BraTS2021_00000_t1.nii.gz", volume(99))
    if spoil == "no case.json":
        (folder / "case.json").unlink()
    elif spoil == "another version":
        text = (folder / "case.json").read_text()
        (folder / "case.json").write_text(text.replace('"cache": 1', '"cache": 2'))
    else:
        write_whole(folder / "mine" / "thesis.tex", "mine")
    before = _tree(folder)
    with pytest.raises(DataError, match=f"{folder} stands where a case .* move it away"):
        prepare(tmp_path)
    assert _tree(folder) == before


def test_processes_at_once_share_the_work(tmp_path: Path) -> None:
    _write_large(tmp_path / "data", cases=6)
    prepare(tmp_path / "data", tmp_path / "undisturbed")
    processes = [_start(tmp_path / "data", tmp_path / "cache") for _ in range(3)]
    built = [int(process.communicate(timeout=120)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sum(built) == 6
    assert _tree(tmp_path / "cache") == _tree(tmp_path / "undisturbed")


def test_broken_case_stops_unless_it_may_be_skipped(tmp_path: Path) -> None:
    datasets.write_brats2021(tmp_path)
    broken = tmp_path / "BraTS2021_00001" / "BraTS2021_00001_t2.nii.gz"
    broken.write_bytes(b"")
    with pytest.raises(DataError, match=r"1 of 3 cases .*00001_t2\.nii\.gz: the file is empty"):
        prepare(tmp_path)
    names = [case.name for case in prepare(tmp_path, skip_broken=True)]
    assert names == ["BraTS2021_00000", "BraTS2021_00002"]


def test_skipping_cannot_leave_nothing(tmp_path: Path) -> None:
    datasets.write_brats2021(tmp_path, cases=1)
    (tmp_path / "BraTS2021_00000" / "BraTS2021_00000_t2.nii.gz").write_bytes(b"")
    with pytest.raises(DataError, match="all 1 cases"):
        prepare(tmp_path, skip_broken=True)


def test_a_claim_of_terabytes_is_a_fault_of_its_case(tmp_path: Path) -> None:
    home = write_case(tmp_path / "BraTS2021_00000")
    path = home / "BraTS2021_00000_t1.nii.gz"
    header = bytearray(gzip.decompress(path.read_bytes()))
    # A grid of 30,000 voxels each way: 27 TB that this file does not hold.
    header[42:48] = np.array([30_000] * 3, dtype="<i2").tobytes()
    path.write_bytes(gzip.compress(bytes(header)))
    # What a file cannot hold is a fault of its case alone.
    with pytest.raises(DataError, match=r"t1.nii.gz: truncated: at most .* of 5400000000"):
        prepare(tmp_path)


def test_lack_of_space_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_case(tmp_path / "BraTS2021_00000")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Mock(free=10_000))
    with pytest.raises(DataError, match=r"needs about .* GB, .* free; .* another place"):
        prepare(tmp_path)


def test_a_limit_of_the_size_of_files_names_the_file(tmp_path: Path) -> None:
    _write_large(tmp_path / "data", cases=1)
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    words = ["prepare", str(tmp_path / "data"), "--cache", str(tmp_path / "cache")]
    command = f"{limited}; from bts_lightning.__main__ import main; raise SystemExit(main({words}))"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "BraTS2021_00000/image.npy cannot be written: File too large" in line
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "cache").rglob("*.npy*"))


def test_fingerprint_follows_the_content_not_the_place(tmp_path: Path) -> None:
    datasets.write_brats2021(tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    os.utime(tmp_path / "there" / "BraTS2021_00000" / "BraTS2021_00000_t1.nii.gz", ns=(1, 1))
    here = fingerprint(prepare(tmp_path / "here"))
    assert here == fingerprint(prepare(tmp_path / "there"))
    write_image(tmp_path / "there" / "BraTS2021_00000" / "BraTS2021_00000_t1.nii.gz", volume(9))
    assert here != fingerprint(prepare(tmp_path / "there"))


@pytest.mark.parametrize(
    "write", [datasets.write_brats2018, datasets.write_brats2023, datasets.write_decathlon]
)
def test_truth_written_as_a_prediction_is_the_file_it_came_from(tmp_path: Path, write: Any) -> None:
    root = write(tmp_path / "data")
    sources = {case.name: case.label for case in find_cases(root).cases}
    case = next(case for case in prepare(root) if case.is_labelled)
    assert case.label is not None
    write_prediction(case, np.array(case.label), tmp_path / "out" / "x.nii.gz")
    ours: Any = nib.Nifti1Image.from_filename(tmp_path / "out" / "x.nii.gz")
    path = sources[case.name]
    assert path is not None
    theirs: Any = nib.Nifti1Image.from_filename(path)
    np.testing.assert_array_equal(ours.get_fdata(), theirs.get_fdata())
    np.testing.assert_array_equal(ours.affine, theirs.affine)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["x.nii.gz"]


def test_same_prediction_gives_the_same_bytes(tmp_path: Path) -> None:
    write_image(tmp_path / "x.nii.gz", volume(0))
    case = load_case(case_of({"t1": tmp_path / "x.nii.gz"}))
    prediction = np.full(case.image.shape[1:], 3, dtype=np.uint8)
    for name in ("a.nii.gz", "b.nii.gz"):
        write_prediction(case, prediction, tmp_path / name)
        time.sleep(0.01)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    written: Any = nib.Nifti1Image.from_filename(tmp_path / "a.nii.gz")
    assert set(np.unique(written.dataobj)) == {0, 3}


def test_probabilities_are_put_back_on_the_grid(tmp_path: Path) -> None:
    write_image(tmp_path / "x.nii.gz", volume(0))
    case = load_case(case_of({"t1": tmp_path / "x.nii.gz"}))
    probabilities = np.full((3, *case.image.shape[1:]), 0.25, dtype=np.float32)
    write_probabilities(case, probabilities, tmp_path / "p.nii.gz")
    written: Any = nib.Nifti1Image.from_filename(tmp_path / "p.nii.gz")
    assert written.shape == (*SIZE, 3)
    np.testing.assert_array_equal(written.affine, AFFINE)
    low = [low for low, _ in case.geometry.box]
    assert written.dataobj[low[0], low[1], low[2], 0] == 0.25


def test_prediction_on_another_grid_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "x.nii.gz", volume(0))
    case = load_case(case_of({"t1": tmp_path / "x.nii.gz"}))
    with pytest.raises(ValueError, match="the box holds"):
        write_prediction(case, np.zeros(SIZE, dtype=np.uint8), tmp_path / "y.nii.gz")


def _write_large(root: Path, cases: int) -> None:
    """Write cases that take long enough to be interrupted."""
    for number in range(cases):
        home = root / f"BraTS2021_{number:05d}"
        write_image(home / f"{home.name}_t1.nii.gz", volume(number, (96, 96, 64)))
        write_image(home / f"{home.name}_seg.nii.gz", tumour(size=(96, 96, 64)))


def _start(root: Path, cache: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE, str(root), str(cache)], stdout=subprocess.PIPE, text=True
    )


def _tree(root: Path) -> dict[str, bytes]:
    files = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    # A JSON that cannot be read would compare equal as bytes.
    assert all(json.loads(files[name]) for name in files if name.endswith(".json"))
    return files
