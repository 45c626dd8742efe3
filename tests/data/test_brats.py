import errno
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from bts_lightning.data.cache import prepare
from bts_lightning.data.cache.reading import BrokenCaseError, read_volumes
from bts_lightning.data.cache.ready import case_of, load_case
from bts_lightning.data.layouts import Case, bids, brats, find_cases
from bts_lightning.data.layouts.find import layouts
from bts_lightning.errors import DataError
from bts_lightning.modalities import MODALITIES
from tests.data import datasets
from tests.data.datasets import AFFINE, SIZE, tumour, volume, write_case, write_image

# NCR 8, ED 20, ET 28 voxels whatever the values in the file.
STORED = [SIZE[0] * SIZE[1] * SIZE[2] - 56, 8, 20, 28]


@pytest.mark.parametrize(
    ("write", "layout", "cases", "patients", "labelled"),
    [
        (datasets.write_brats2018, "BraTS 2018", 2, 2, 2),
        (datasets.write_brats2019, "BraTS 2019", 2, 2, 2),
        (datasets.write_brats2020, "BraTS 2020", 4, 4, 3),
        (datasets.write_brats2021, "BraTS 2021", 3, 3, 3),
        (datasets.write_brats2023, "BraTS 2023", 3, 2, 3),
        (datasets.write_brats2024, "BraTS 2024", 2, 1, 2),
        (datasets.write_decathlon, "Decathlon Task01", 3, 3, 2),
        (datasets.write_bids, "BIDS", 3, 2, 3),
        (datasets.write_manifest_set, "manifest", 2, 2, 1),
    ],
)
def test_layout_is_found_by_itself(
    tmp_path: Path,
    write: Callable[[Path], Path],
    layout: str,
    cases: int,
    patients: int,
    labelled: int,
) -> None:
    found = find_cases(write(tmp_path))
    assert (found.layout, found.faults, found.ignored) == (layout, (), ())
    assert len(found.cases) == cases
    assert len({case.patient for case in found.cases}) == patients
    for seed, case in enumerate(sorted(found.cases, key=_written)):
        volumes = read_volumes(case)
        for modality, image in volumes.images.items():
            np.testing.assert_array_equal(image, volume(4 * seed + MODALITIES.index(modality)))
        np.testing.assert_array_equal(volumes.affine, AFFINE)
        if volumes.label is not None:
            assert np.bincount(volumes.label.ravel()).tolist() == STORED
    assert sum(case.label is not None for case in found.cases) == labelled


def _written(case: Case) -> tuple[bool, str]:
    # The builders number the voxels' seeds in order of the names, grades before names until 2019.
    return "LGG" in case.files[0].parts, case.name


def test_names_of_each_release() -> None:
    from bts_lightning.data.layouts.brats import _CLASSIC, _MODERN

    assert _CLASSIC.fullmatch("Brats17_2013_2_1_t1ce")
    assert _MODERN.fullmatch("BraTS-SSA-00002-000-t2f")


def test_time_points_belong_to_one_patient(tmp_path: Path) -> None:
    cases = find_cases(datasets.write_brats2023(tmp_path)).cases
    assert [case.patient for case in cases] == ["BraTS-GLI-00000"] * 2 + ["BraTS-GLI-00002"]


def test_metastases_are_read(tmp_path: Path) -> None:
    found = find_cases(datasets.write_brats_met(tmp_path))
    assert found.layout == "BraTS 2023"
    assert [case.patient for case in found.cases] == ["BraTS-MET-00001"] * 2 + ["BraTS-MET-00002"]
    for seed, case in enumerate(found.cases):
        volumes = read_volumes(case)
        assert case.available == (True, True, True, True)
        np.testing.assert_array_equal(volumes.images["t1c"], volume(4 * seed + 1))
        assert volumes.label is not None
        assert np.bincount(volumes.label.ravel()).tolist() == STORED


def test_absent_modalities_are_no_fault(tmp_path: Path) -> None:
    write_case(tmp_path / "BraTS2021_00000", modalities=["t1c", "flair"], label=tumour())
    (case,) = find_cases(tmp_path).cases
    assert case.available == (False, True, False, True)
    assert set(read_volumes(case).images) == {"t1c", "flair"}


def test_two_releases_in_one_folder_keep_their_label_values(tmp_path: Path) -> None:
    datasets.write_brats2021(tmp_path / "a", cases=1)
    datasets.write_brats2023(tmp_path / "b")
    found = find_cases(tmp_path)
    assert found.layout == "BraTS 2021 + BraTS 2023"
    for case in found.cases:
        label = read_volumes(case).label
        assert label is not None
        assert np.bincount(label.ravel()).tolist() == STORED


def test_resection_cavity_is_background_or_a_class_of_its_own(tmp_path: Path) -> None:
    case = find_cases(datasets.write_brats2024(tmp_path)).cases[0]
    for scheme, stored in (("brats", 0), ("cavity", 4)):
        volumes = read_volumes(case, scheme)
        assert volumes.label_found == (0, 1, 2, 3, 4)
        assert volumes.label is not None
        assert (volumes.label[3:5, 8:10, 8:10] == stored).all()


def test_each_scheme_has_a_cache_of_its_own(tmp_path: Path) -> None:
    datasets.write_brats2024(tmp_path)
    plain, own = (prepare(tmp_path, scheme=scheme) for scheme in ("brats", "cavity"))
    assert [c.name for c in plain] == [c.name for c in own]
    volumes = plain[0].volumes_ml, own[0].volumes_ml
    assert volumes[0] is not None
    assert volumes[1] is not None
    assert {**volumes[0], "RC": 0.008} == volumes[1]
    assert "scheme" not in plain[0].description["request"]["recipe"]
    assert plain[0].folder != own[0].folder


def test_labels_that_mean_other_things_are_read_by_their_scheme_alone(tmp_path: Path) -> None:
    child = tmp_path / "a" / "BraTS-PED-00002-000"
    for name in ("t1n", "t1c", "t2w", "t2f", "seg"):
        array = volume(0) if name != "seg" else np.zeros(SIZE, np.uint8)
        if name == "seg":
            array[3:7, 3, 3] = 1, 2, 3, 4
        write_image(child / f"{child.name}-{name}.nii.gz", array)
    (case,) = find_cases(tmp_path / "a").cases
    assert (case.layout, case.patient) == ("BraTS 2024", "BraTS-PED-00002")
    label = read_volumes(case, "ped").label
    assert label is not None
    assert label[3:7, 3, 3].tolist() == [1, 2, 3, 4]
    with pytest.raises(DataError, match=r"know cyst, .* does not; .*set data\.scheme=ped$"):
        read_volumes(case)
    before = tmp_path / "b" / "BraTS-MEN-RT-0007-1"
    write_image(before / f"{before.name}_t1c.nii.gz", volume(1))
    write_image(before / f"{before.name}_gtv.nii.gz", (volume(1) > 900).astype(np.uint8))
    (case,) = find_cases(tmp_path / "b").cases
    assert case.available == (False, True, False, False)
    assert read_volumes(case, "men_rt").label_found == (0, 1)
    # In one folder they are no data set.
    for scheme in ("ped", "men_rt"):
        with pytest.raises(DataError, match="a data set is read by one scheme"):
            prepare(tmp_path, scheme=scheme)


def test_hidden_files_and_strangers_make_no_case(tmp_path: Path) -> None:
    case = write_case(tmp_path / "BraTS2021_00000", label=tumour())
    (case / "._BraTS2021_00000_t1.nii.gz").write_bytes(b"Mac OS X")
    write_image(case / "brain mask.nii.gz", tumour())
    found = find_cases(tmp_path)
    assert len(found.cases) == 1
    assert [path.name for path in found.ignored] == ["brain mask.nii.gz"]


def test_folder_named_as_a_file_is_looked_into(tmp_path: Path) -> None:
    home = tmp_path / "BraTS2021_00000"
    write_case(home, modalities=["t1", "t2", "flair"])
    write_image(home / "BraTS2021_00000_t1ce.nii" / "00000057_final.nii", volume(1))
    (case,) = find_cases(tmp_path).cases
    assert case.available == (True, True, True, True)


def test_link_to_a_folder_above_ends(tmp_path: Path) -> None:
    write_case(tmp_path / "BraTS2021_00000")
    (tmp_path / "BraTS2021_00000" / "up").symlink_to(tmp_path)
    assert len(find_cases(tmp_path).cases) == 1


def test_name_says_nothing_about_compression(tmp_path: Path) -> None:
    home = write_case(tmp_path / "BraTS2021_00000", modalities=["t1", "t2"])
    packed = home / "BraTS2021_00000_t1.nii.gz"
    packed.write_bytes(gzip.decompress(packed.read_bytes()))
    (case,) = find_cases(tmp_path).cases
    np.testing.assert_array_equal(read_volumes(case).images["t1"], volume(0))


def test_scaled_integers_are_read_as_their_header_says(tmp_path: Path) -> None:
    image = nib.Nifti1Image(volume(0) * 0.37, AFFINE)
    # Fractions as integers: nibabel writes the factor into the header.
    image.header.set_data_dtype(np.int16)
    path = tmp_path / "BraTS2021_00000" / "BraTS2021_00000_t1.nii"
    path.parent.mkdir()
    nib.save(image, path)
    (case,) = find_cases(tmp_path).cases
    read = read_volumes(case).images["t1"]
    saved: Any = nib.Nifti1Image.from_filename(path)
    assert saved.dataobj.slope != 1
    np.testing.assert_array_equal(read, saved.get_fdata())


def test_voxels_stay_in_the_order_of_nibabel(tmp_path: Path) -> None:
    # No axis of this grid is like another, and its affine swaps and mirrors them.
    affine = np.array([[0, 0, 2.0, -5], [-1.0, 0, 0, 7], [0, 3.0, 0, 1], [0, 0, 0, 1]])
    home = tmp_path / "BraTS2021_00000"
    write_image(home / "BraTS2021_00000_t1.nii.gz", volume(0), affine)
    ready = load_case(find_cases(tmp_path).cases[0])
    assert ready.geometry.shape == SIZE
    assert ready.geometry.spacing == (1.0, 3.0, 2.0)
    np.testing.assert_array_equal(
        ready.geometry.uncrop(ready.image[0] != 0), (volume(0) != 0) & datasets.brain()
    )


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-200]), "truncated"),
    "truncated plain": (
        lambda p: p.write_bytes(gzip.decompress(p.read_bytes())[:-200]),
        "truncated: at most 11672 of 11872 bytes",
    ),
    "damaged": (lambda p: p.write_bytes(_flipped(p.read_bytes())), "damaged|truncated"),
    "no image": (lambda p: p.write_text("<html>404 Not Found</html>"), "not a NIfTI image"),
    "empty file": (lambda p: p.write_bytes(b""), "the file is empty"),
    "NaN": (lambda p: write_image(p, _with_nan()), "1 voxels are NaN or infinite"),
    "flat": (lambda p: write_image(p, volume(0)[:, :, 0]), "shape 20×18; expected 3 dimensions"),
    "4-D": (
        lambda p: write_image(p, np.stack([volume(0), volume(1)], axis=-1)),
        "shape 20×18×16×2; expected 3 dimensions",
    ),
    "shape": (lambda p: write_image(p, volume(0, (20, 18, 15))), "another grid: 20×18×15 voxels"),
    "affine": (lambda p: write_image(p, volume(0), _moved()), "another grid: .* 1.5 mm from"),
    "empty modality": (lambda p: write_image(p, volume(0) * 0), "every voxel is 0"),
    "no contrast": (
        lambda p: write_image(p, np.where(datasets.brain(), 7, 0).astype(np.int16)),
        "every voxel of the brain is 7",
    ),
    "singular": (lambda p: _write_singular(p), "affine cannot be inverted"),
    "colour": (lambda p: write_image(p, _coloured()), "expected one number each"),
    "dangling link": (lambda p: _unlinked(p).symlink_to("/nowhere"), "cannot be opened"),
}
LABEL_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "unknown value": (lambda p: write_image(p, tumour((1, 2, 7))), "unknown label value 7"),
    "fraction": (
        lambda p: write_image(p, (tumour() * 0.5).astype(np.float32)),
        "unknown label value 0.5",
    ),
    "negative": (
        lambda p: write_image(p, -tumour().astype(np.int16)),
        "unknown label value -4, -2, -1",
    ),
    "wrong release": (lambda p: write_image(p, tumour((1, 2, 3))), "value 3; BraTS 2021 has 0, 1"),
    "shape": (lambda p: write_image(p, tumour()[:, :17]), "another grid: 20×17×16 voxels"),
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-50]), "truncated"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_image_is_named_with_its_reason(tmp_path: Path, fault: str) -> None:
    spoil, reason = FAULTS[fault]
    home = write_case(tmp_path / "BraTS2021_00000", label=tumour())
    path = home / "BraTS2021_00000_t2.nii.gz"
    spoil(path)
    (case,) = find_cases(tmp_path).cases
    with pytest.raises(BrokenCaseError, match=reason) as error:
        read_volumes(case)
    assert {(one.case, one.file) for one in error.value.faults} == {("BraTS2021_00000", path)}


@pytest.mark.parametrize("fault", LABEL_FAULTS)
def test_broken_label_is_named_with_its_reason(tmp_path: Path, fault: str) -> None:
    spoil, reason = LABEL_FAULTS[fault]
    home = write_case(tmp_path / "BraTS2021_00000", label=tumour())
    path = home / "BraTS2021_00000_seg.nii.gz"
    spoil(path)
    (case,) = find_cases(tmp_path).cases
    with pytest.raises(BrokenCaseError, match=reason) as error:
        read_volumes(case)
    assert [one.file for one in error.value.faults] == [path]


def test_all_faults_of_a_case_are_told_at_once(tmp_path: Path) -> None:
    home = write_case(tmp_path / "BraTS2021_00000", label=tumour((1, 2, 9)))
    (home / "BraTS2021_00000_t1.nii.gz").write_bytes(b"")
    (case,) = find_cases(tmp_path).cases
    with pytest.raises(BrokenCaseError) as error:
        read_volumes(case)
    assert len(error.value.faults) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file_is_a_fault(tmp_path: Path) -> None:
    home = write_case(tmp_path / "BraTS2021_00000")
    (home / "BraTS2021_00000_t1.nii.gz").chmod(0)
    with pytest.raises(BrokenCaseError, match="cannot be opened: Permission denied"):
        read_volumes(find_cases(tmp_path).cases[0])


def test_rounding_in_an_affine_is_no_other_grid(tmp_path: Path) -> None:
    home = write_case(tmp_path / "BraTS2021_00000", modalities=["t1"])
    write_image(home / "BraTS2021_00000_t2.nii.gz", volume(2), AFFINE * (1 + 1e-5))
    assert set(read_volumes(find_cases(tmp_path).cases[0]).images) == {"t1", "t2"}


def test_same_modality_twice_is_a_fault_by_name(tmp_path: Path) -> None:
    write_case(tmp_path / "BraTS2021_00000", label=tumour())
    write_case(tmp_path / "BraTS2021_00000", modalities=["t1"], ending=".nii")
    write_case(tmp_path / "BraTS2021_00001")
    found = find_cases(tmp_path)
    assert [case.name for case in found.cases] == ["BraTS2021_00001"]
    (fault,) = found.faults
    assert fault.file.name.startswith("BraTS2021_00000_t1.nii")
    assert "second file for t1" in fault.reason


def test_label_without_images_is_a_fault(tmp_path: Path) -> None:
    write_case(tmp_path / "BraTS2021_00000", modalities=[], label=tumour())
    assert find_cases(tmp_path).faults[0].reason == "a label without any image"


def test_manifest_tells_line_by_line_what_is_wrong(tmp_path: Path) -> None:
    write_image(tmp_path / "a.nii.gz", volume(0))
    rows = [
        {"case": "good", "t1": "a.nii.gz"},
        {"case": "good", "t1": "a.nii.gz"},
        {"case": "gone", "t1": "a.nii.gz", "label": "b.nii.gz"},
        {"case": "no image"},
        {"case": "../up", "t1": "a.nii.gz"},
        {"case": "odd", "t1": "a.nii.gz", "labels": "brats1999"},
    ]
    found = find_cases(datasets.write_manifest(tmp_path, rows))
    assert [case.name for case in found.cases] == ["good"]
    reasons = "\n".join(map(str, found.faults))
    for words in (
        "stands on two lines",
        "b.nii.gz: named in manifest.csv, column label, but not there",
        "no image is named",
        "'../up' is not a plain file name",
        "labels is 'brats1999'",
    ):
        assert words in reasons


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("x" * 300 + ",a.nii.gz", "is not a plain file name"),
        ("b," + "x" * 300 + ".nii.gz", "cannot be looked at: File name too long"),
        ("b," + "x" * 70_000, "cannot be looked at: File name too long"),
        ("b,a.nii.gz,a.nii.gz", "line 3 has 3 cells; the first line has 2"),
        ("b", "line 3 has 1 cells; the first line has 2"),
    ],
)
def test_a_row_without_measure_is_a_fault_in_few_words(tmp_path: Path, row: str, told: str) -> None:
    write_image(tmp_path / "a.nii.gz", volume(0))
    (tmp_path / "manifest.csv").write_text(f"case,t1\na,a.nii.gz\n{row}\n")
    found = find_cases(tmp_path)
    assert [case.name for case in found.cases] == ["a"]
    assert any(told in str(fault) for fault in found.faults)
    assert all(len(str(fault)) < 700 for fault in found.faults)


def test_a_cell_of_200_000_letters_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text(f"case,t1\n{'x' * 200_000},a.nii\n")
    with pytest.raises(DataError, match=r"manifest\.csv is no CSV: field larger"):
        find_cases(tmp_path)


def test_a_pipe_is_never_waited_for(tmp_path: Path) -> None:
    home = write_case(tmp_path / "BraTS2021_00000")
    (image := home / "BraTS2021_00000_t1.nii.gz").unlink()
    os.mkfifo(image)
    (home / "BraTS2021_00000_t2.nii.gz").unlink()
    (home / "BraTS2021_00000_t2.nii.gz").symlink_to("/dev/zero")
    with pytest.raises(BrokenCaseError) as error:
        read_volumes(find_cases(tmp_path).cases[0])
    assert [f.reason for f in error.value.faults] == ["cannot be opened: not a regular file"] * 2
    for name in ("manifest.csv", "dataset.json"):
        home = datasets.write_decathlon(tmp_path / name) / "Task01_BrainTumour"
        (home / name).unlink(missing_ok=True)
        os.mkfifo(home / name)
        with pytest.raises(DataError, match=f"{name} .*not a regular file"):
            find_cases(home)


def test_a_folder_in_the_place_of_an_image_is_a_fault(tmp_path: Path) -> None:
    home = write_case(tmp_path / "BraTS2021_00000")
    (image := home / "BraTS2021_00000_t1.nii.gz").unlink()
    image.mkdir()
    with pytest.raises(BrokenCaseError, match="cannot be opened: not a regular file"):
        read_volumes(find_cases(tmp_path).cases[0])


def test_a_data_set_is_a_folder_or_a_manifest_with_cases(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.csv")
    os.mkfifo(tmp_path / "b")
    (tmp_path / "c.csv").write_text("case,t1\n")
    for name, told in (
        ("a.csv", "not a regular file"),
        ("b", "is no folder"),
        ("c.csv", "has no case"),
        ("~nobody-has-this-name", "not known where this home folder lies"),
    ):
        with pytest.raises(DataError, match=told):
            find_cases(name if name.startswith("~") else tmp_path / name)


def test_a_folder_without_rights_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets.write_brats2021(tmp_path)
    (tmp_path / "BraTS2021_00007.nii.gz").mkdir()
    shut = ("BraTS2021_00001", "BraTS2021_00007.nii.gz")

    def unless_shut(read: Any) -> Any:
        def reading(path: Any) -> Any:
            if Path(path).name in shut:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return read(path)

        return reading

    monkeypatch.setattr(os, "scandir", unless_shut(os.scandir))
    monkeypatch.setattr(os, "listdir", unless_shut(os.listdir))
    found = find_cases(tmp_path)
    assert [case.name for case in found.cases] == ["BraTS2021_00000", "BraTS2021_00002"]
    assert {(fault.file, fault.reason) for fault in found.faults} == {
        (tmp_path / name, "cannot be opened: Permission denied") for name in shut
    }
    with pytest.raises(DataError, match=r"2 of 4 cases .* Permission denied"):
        prepare(tmp_path)
    assert len(prepare(tmp_path, skip_broken=True)) == 2


def test_two_manifest_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    # A reader that keeps the last of them would take T2 for T1.
    (tmp_path / "manifest.csv").write_text("case,t1,t1,t2\na,1.nii,1c.nii,2.nii\n")
    with pytest.raises(DataError, match="has two columns 't1'"):
        find_cases(tmp_path)


def test_a_manifest_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_bytes("case,patient,t1\na,Müller,1.nii\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"manifest\.csv is no text in UTF-8"):
        find_cases(tmp_path)


def test_misspelt_manifest_column_names_the_nearest(tmp_path: Path) -> None:
    path = datasets.write_manifest(tmp_path, [{"case": "a", "t1": "a.nii", "fliar": "b.nii"}])
    with pytest.raises(DataError, match="unknown column 'fliar'; did you mean flair"):
        find_cases(path)


def test_other_decathlon_task_is_refused(tmp_path: Path) -> None:
    home = datasets.write_decathlon(tmp_path) / "Task01_BrainTumour" / "dataset.json"
    content = json.loads(home.read_text())
    content["labels"]["1"] = "necrosis"
    home.write_text(json.dumps(content))
    with pytest.raises(DataError, match="only Task01"):
        find_cases(tmp_path)


def test_decathlon_channels_follow_the_description(tmp_path: Path) -> None:
    home = datasets.write_decathlon(tmp_path) / "Task01_BrainTumour" / "dataset.json"
    content = json.loads(home.read_text())
    content["modality"] = {"0": "T1w", "1": "FLAIR", "2": "t1gd", "3": "T2w"}
    home.write_text(json.dumps(content))
    images = read_volumes(find_cases(tmp_path).cases[0]).images
    # The builder put FLAIR first, seed 3, and T1 second, seed 0.
    np.testing.assert_array_equal(images["t1"], volume(3))
    np.testing.assert_array_equal(images["flair"], volume(0))


@pytest.mark.parametrize("names", [[], ["patient_7_t1.nii.gz"]])
def test_unknown_folder_says_what_is_known(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        write_image(tmp_path / name, volume(0))
    with pytest.raises(DataError, match="known are") as refusal:
        find_cases(tmp_path)
    assert {layout.KNOWN for layout in layouts()} > {brats.KNOWN, bids.KNOWN}
    assert all(layout.KNOWN in str(refusal.value) for layout in layouts())


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing does not exist"):
        find_cases(tmp_path / "nothing")


def test_images_of_one_patient_need_no_data_set(tmp_path: Path) -> None:
    write_image(tmp_path / "x.nii.gz", volume(0))
    write_image(tmp_path / "y.nii.gz", volume(1))
    case = load_case(case_of({"flair": tmp_path / "y.nii.gz", "t1": tmp_path / "x.nii.gz"}))
    assert case.available == (True, False, False, True)
    assert case.label is None
    assert not case.image[1:3].any()


def test_images_of_one_patient_must_share_a_grid(tmp_path: Path) -> None:
    write_image(tmp_path / "x.nii.gz", volume(0))
    write_image(tmp_path / "y.nii.gz", volume(1), _moved())
    with pytest.raises(DataError, match=r"y\.nii\.gz: another grid: .* from that of x\.nii\.gz"):
        load_case(case_of({"t1": tmp_path / "x.nii.gz", "flair": tmp_path / "y.nii.gz"}))


def _unlinked(path: Path) -> Path:
    path.unlink()
    return path


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


def _with_nan() -> np.ndarray:
    values = volume(0).astype(np.float32)
    values[10, 9, 8] = np.nan
    return values


def _moved() -> np.ndarray:
    moved = AFFINE.copy()
    moved[2, 3] += 1.5
    return moved


def _write_singular(path: Path) -> None:
    plain = bytearray(gzip.decompress(path.read_bytes()))
    # srow_x, srow_y and srow_z of the NIfTI-1 header.
    plain[280:328] = bytes(48)
    path.write_bytes(bytes(plain))


def _coloured() -> np.ndarray:
    return np.zeros(SIZE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])


def test_each_layout_claims_its_own_files(tmp_path: Path):
    datasets.write_decathlon(tmp_path / "Task01_BrainTumour")
    datasets.write_brats2021(tmp_path / "BraTS2021")
    write_image(tmp_path / "stranger.nii.gz", volume(0))
    found = find_cases(tmp_path)
    assert found.layout == "BraTS 2021 + Decathlon Task01"
    assert [path.name for path in found.ignored] == ["stranger.nii.gz"]


def test_two_files_of_one_name_are_a_fault_that_names_both(tmp_path: Path):
    datasets.write_decathlon(tmp_path)
    file = next(tmp_path.rglob("imagesTr/*.nii.gz"))
    nested = file.parent / "again" / file.name
    nested.parent.mkdir()
    nested.write_bytes(file.read_bytes())
    found = find_cases(tmp_path)
    (fault,) = found.faults
    assert str(file) in str(fault)
    assert str(nested) in str(fault)
    assert fault.case not in [case.name for case in found.cases]


@pytest.mark.parametrize("again", ["t2", "label"])
def test_a_file_that_stands_for_two_things_is_a_fault(tmp_path: Path, again: str):
    write_image(tmp_path / "one.nii.gz", volume(0))
    (tmp_path / "manifest.csv").write_text(f"case,t1,{again}\na,one.nii.gz,one.nii.gz\n")
    (fault,) = find_cases(tmp_path).faults
    assert (fault.file.name, fault.case) == ("one.nii.gz", "a")


@pytest.mark.parametrize("again", ["flair", "label"])
@pytest.mark.parametrize("name", ["link.nii.gz", "below/../one.nii.gz"])
def test_a_file_under_two_names_is_a_fault_too(tmp_path: Path, again: str, name: str):
    write_image(tmp_path / "one.nii.gz", volume(0))
    (tmp_path / "below").mkdir()
    (tmp_path / "link.nii.gz").symlink_to("one.nii.gz")
    (tmp_path / "manifest.csv").write_text(f"case,t1,{again}\na,one.nii.gz,{name}\n")
    (fault,) = find_cases(tmp_path).faults
    assert (fault.case, fault.file) == ("a", tmp_path / name)
    (tmp_path / "manifest.csv").write_text(f"case,t1\na,one.nii.gz\nb,{name}\n")
    (fault,) = find_cases(tmp_path).faults
    assert str(fault) == f"b: {tmp_path / name}: a file of case a as well"


def test_a_label_that_is_the_image_of_all_modalities_is_a_fault(tmp_path: Path):
    datasets.write_decathlon(tmp_path)
    label = next(tmp_path.rglob("labelsTr/*.nii.gz"))
    image = next(tmp_path.rglob(f"imagesTr/{label.name}"))
    label.unlink()
    label.symlink_to(image)
    (fault,) = find_cases(tmp_path).faults
    assert fault.file == label


def test_a_reader_cannot_hand_on_a_case_without_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    empty = Case("nobody", "nobody", "clinic", {}, None, {})
    monkeypatch.setattr(brats, "read", lambda images: [empty])
    assert str(find_cases(tmp_path).faults[0]) == f"nobody: {tmp_path}: a case without any image"
