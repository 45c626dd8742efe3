from pathlib import Path

import pytest

from bts_lightning.data.cache.reading import BrokenCaseError, read_volumes
from bts_lightning.data.layouts import find_cases
from bts_lightning.modalities import MODALITIES
from tests.data.datasets import tumour, volume, write_bids, write_brats2021, write_image

# One small image; where only names matter, every file holds it.
VOXELS = volume(0)


def write(root: Path, *names: str) -> Path:
    for name in names:
        write_image(root / f"{name}.nii.gz", VOXELS)
    return root


def test_patient_is_the_subject_and_the_session_its_time_point(tmp_path: Path) -> None:
    cases = find_cases(write_bids(tmp_path)).cases
    assert [(case.name, case.patient) for case in cases] == [
        ("sub-01_ses-01", "sub-01"),
        ("sub-01_ses-02", "sub-01"),
        ("sub-02", "sub-02"),
    ]


@pytest.mark.parametrize(
    "name",
    [
        "ce-gadolinium_T1w",
        "ce-GADOLINIUM_T1w",
        "acq-mprage_ce-Gd_run-1_T1w",
        "space-SRI24_desc-preproc_T1ce",
        "T1c",
        "T1gd",
        "T1Gd",
        "T1wCE",
    ],
)
def test_t1_with_contrast_agent_is_t1c(tmp_path: Path, name: str) -> None:
    (case,) = find_cases(write(tmp_path, "sub-1/anat/sub-1_T1w", f"sub-1/anat/sub-1_{name}")).cases
    assert case.images["t1c"].name == f"sub-1_{name}.nii.gz"
    assert case.images["t1"].name == "sub-1_T1w.nii.gz"


def test_absent_modalities_and_an_absent_label_are_no_fault(tmp_path: Path) -> None:
    found = find_cases(write(tmp_path, "sub-a/anat/sub-a_T2w", "sub-a/anat/sub-a_FLAIR"))
    (case,) = found.cases
    assert (case.available, case.label, found.faults) == ((False, False, True, True), None, ())


@pytest.mark.parametrize(
    ("first", "second", "part"),
    [
        ("sub-1_run-1_T1w", "sub-1_run-2_T1w", "t1"),
        ("sub-1_T1ce", "sub-1_ce-gadolinium_T1w", "t1c"),
        ("sub-1_dseg", "sub-1_seg", "label"),
    ],
)
def test_two_files_for_one_part_are_a_fault_that_names_both(
    tmp_path: Path, first: str, second: str, part: str
) -> None:
    write(tmp_path, "sub-1/anat/sub-1_FLAIR", f"sub-1/anat/{first}", f"sub-1/anat/{second}")
    found = find_cases(tmp_path)
    (fault,) = found.faults
    assert f"second file for {part}" in fault.reason
    assert first in str(fault)
    assert second in str(fault)
    # Its other files are known, for it is one fault and not three.
    assert (found.cases, found.ignored) == ((), ())


def test_raw_image_and_its_derivative_are_two_files_for_one_modality(tmp_path: Path) -> None:
    write(
        tmp_path,
        "sub-1/anat/sub-1_T1w",
        "derivatives/strip/sub-1/anat/sub-1_space-SRI24_desc-brain_T1w",
    )
    assert "second file for t1" in find_cases(tmp_path).faults[0].reason
    # The folder of the derivative alone is a data set as well.
    assert find_cases(tmp_path / "derivatives" / "strip").faults == ()


def test_label_alone_is_a_fault(tmp_path: Path) -> None:
    (fault,) = find_cases(write(tmp_path, "sub-1/anat/sub-1_dseg")).faults
    assert fault.reason == "a case without any image"


def test_raw_data_and_derivatives_may_lie_side_by_side(tmp_path: Path) -> None:
    write(
        tmp_path, "rawdata/sub-1/anat/sub-1_T2w", "derivatives/seg/sub-1/anat/sub-1_desc-tumor_dseg"
    )
    (case,) = find_cases(tmp_path).cases
    assert case.label is not None


def test_one_subject_number_in_two_data_sets_is_never_one_case(tmp_path: Path) -> None:
    write(tmp_path, "here/sub-1/anat/sub-1_T1w", "there/sub-1/anat/sub-1_T2w")
    (fault,) = find_cases(tmp_path).faults
    assert "a second case of this name" in fault.reason


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    write_brats2021(tmp_path / "brats", cases=1)
    strangers = [
        "sub-1_desc-brain_mask",
        "sub-1_label-ET_probseg",
        "sub-1_ce-gadolinium_FLAIR",  # with contrast agent it shows what our FLAIR does not
        "sub-1_dir-AP_dwi",
        "sub-1_inplaneT2",
        "T1w",
        "subject-1_T1w",
    ]
    write(tmp_path, "sub-1/anat/sub-1_T1w", *(f"sub-1/anat/{name}" for name in strangers))
    found = find_cases(tmp_path)
    assert found.layout == "BIDS + BraTS 2021"
    assert found.faults == ()
    assert sorted(p.name for p in found.ignored) == sorted(f"{s}.nii.gz" for s in strangers)
    brats, bids = found.cases
    assert (len(brats.images), list(bids.images)) == (len(MODALITIES), ["t1"])


def test_a_four_in_the_label_is_refused_and_the_reader_told_what_to_do(tmp_path: Path) -> None:
    write(tmp_path, "sub-1/anat/sub-1_T1w")
    write_image(tmp_path / "sub-1/anat/sub-1_dseg.nii.gz", tumour((1, 2, 4)))
    (case,) = find_cases(tmp_path).cases
    with pytest.raises(BrokenCaseError, match=r"label value 4; BIDS has .* manifest"):
        read_volumes(case)
