"""Reading what scanners and converters leave, and refusing in one line what is no MR volume."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from bts_lightning.errors import DataError
from bts_lightning.preprocess.series import read_all, read_series
from tests.preprocess import dicom


def volume(
    size: tuple[int, int, int] = (12, 11, 10), edge: float = 12.0, seed: int = 0
) -> sitk.Image:
    """A tilted box of noise, as large as a head."""
    values = np.random.default_rng(seed).integers(0, 900, size[::-1]).astype(np.int16)
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((edge, edge, edge + 1))
    image.SetOrigin((-60.0, 13.0, 5.0))
    turn = sitk.Euler3DTransform()
    turn.SetRotation(0.2, -0.1, 0.3)
    image.SetDirection(turn.GetMatrix())
    return image


def save(image: sitk.Image, file: Path) -> Path:
    sitk.WriteImage(image, str(file))
    return file


def test_nifti_nrrd_and_dicom_give_the_same_volume_in_the_same_place(tmp_path: Path) -> None:
    image = volume()
    dicom.write_series(image, tmp_path / "dicom")
    places = [
        save(image, tmp_path / "a.nii.gz"),
        save(image, tmp_path / "a.nrrd"),
        tmp_path / "dicom",
    ]
    for place in places:
        read = read_series(place).image
        np.testing.assert_array_equal(sitk.GetArrayFromImage(read), sitk.GetArrayFromImage(image))
        np.testing.assert_allclose(read.GetOrigin(), image.GetOrigin(), atol=1e-3)
        np.testing.assert_allclose(read.GetSpacing(), image.GetSpacing(), atol=1e-3)
        np.testing.assert_allclose(read.GetDirection(), image.GetDirection(), atol=1e-5)
    assert len({read_series(place).digest for place in places}) == 1


def one_missing(files: list[Path]) -> None:
    files[4].unlink()


def last_missing(files: list[Path]) -> None:
    files[0].unlink()


def two_series(files: list[Path]) -> None:
    for file in files[5:]:
        dicom.change(file, SeriesInstanceUID="1.2.3")


def two_patients(files: list[Path]) -> None:
    dicom.change(files[3], PatientID="other")


def a_ct(files: list[Path]) -> None:
    for file in files:
        dicom.change(file, Modality="CT")


def multi_frame(files: list[Path]) -> None:
    for file in files:
        dicom.change(file, NumberOfFrames=2)


def tilted(files: list[Path]) -> None:
    for number, file in enumerate(files):
        dicom.change(
            file,
            ImagePositionPatient=[0, 3 * number, -13 * number],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
        )


def localiser(files: list[Path]) -> None:
    for file in files[:3]:
        dicom.change(file, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])


def two_echoes(files: list[Path]) -> None:
    import pydicom

    dicom.change(files[1], ImagePositionPatient=pydicom.dcmread(files[2]).ImagePositionPatient)


def truncated(files: list[Path]) -> None:
    files[2].write_bytes(files[2].read_bytes()[:-200])


def nowhere(files: list[Path]) -> None:
    for file in files:
        dicom.change(file, ImagePositionPatient=None)


def one_slice(files: list[Path]) -> None:
    for file in files[1:]:
        file.unlink()
    dicom.change(files[0], ImagesInAcquisition=1)


def no_dicom(files: list[Path]) -> None:
    for file in files:
        file.write_text("a text")


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (one_missing, "9 of the 10 images"),
        (last_missing, "9 of the 10 images"),
        (two_series, "holds 2 DICOM series (of 5, 5 files)"),
        (two_patients, "of two patients"),
        (a_ct, "a series of CT"),
        (multi_frame, "multi-frame DICOM file, which is not supported"),
        (tilted, "sheared (a tilted gantry); not supported"),
        (localiser, "in several planes"),
        (two_echoes, "several images of one place"),
        (truncated, "is it truncated"),
        (nowhere, "does not say where its slices lie"),
        (one_slice, "holds one slice"),
        (no_dicom, "holds no DICOM image"),
    ],
)
def test_a_broken_dicom_series_is_one_line_without_names(
    spoil: Callable[[list[Path]], None],
    line: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    spoil(dicom.write_series(volume(), tmp_path / "dicom"))
    with pytest.raises(DataError, match=re.escape(line)) as error:
        read_series(tmp_path / "dicom")
    assert "\n" not in str(error.value)
    printed = "".join(capfd.readouterr()) + str(error.value)
    assert not [word for word in dicom.SECRETS if word in printed]


def test_a_gap_in_a_series_that_announces_nothing_is_seen(tmp_path: Path) -> None:
    files = dicom.write_series(volume(), tmp_path / "dicom")
    for file in files:
        dicom.change(file, ImagesInAcquisition=None)
    files[4].unlink()
    with pytest.raises(DataError, match=r"slices lie 13\.0 mm apart, and 26\.0 mm somewhere"):
        read_series(tmp_path / "dicom")


def flat(image: sitk.Image) -> sitk.Image:
    return image[:, :, 3]


def one_deep(image: sitk.Image) -> sitk.Image:
    return image[:, :, 3:4]


def four_dimensions(image: sitk.Image) -> sitk.Image:
    return sitk.JoinSeries([image, image])


def hounsfield(image: sitk.Image) -> sitk.Image:
    return image - 1024


def empty(image: sitk.Image) -> sitk.Image:
    return image * 0


def a_slab(image: sitk.Image) -> sitk.Image:
    return image[:, :, :4]


def colours(image: sitk.Image) -> sitk.Image:
    return sitk.Compose([image, image, image])


def infinite(image: sitk.Image) -> sitk.Image:
    return sitk.Log(sitk.Cast(image, sitk.sitkFloat32) * 0)


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (flat, "expected a volume of three dimensions"),
        (one_deep, "expected a volume of three dimensions"),
        (four_dimensions, "12×11×10×2 voxels"),
        (hounsfield, "as a CT or a phase image"),
        (empty, "every voxel is 0"),
        (a_slab, "covers 144×132×52 mm; a whole head is needed"),
        (colours, "several values a voxel"),
        (infinite, "NaN or infinite"),
    ],
)
def test_a_file_that_is_no_head_is_one_line(
    spoil: Callable[[sitk.Image], sitk.Image], line: str, tmp_path: Path
) -> None:
    # ITK reads what is no number in NIfTI as 0.
    file = save(spoil(volume()), tmp_path / "a.nrrd")
    with pytest.raises(DataError, match=line) as error:
        read_series(file)
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("a.nii.gz", "is it damaged"),
        ("a.jpg", "give a file that ends in"),
        ("b.nii", "cannot be opened"),
    ],
)
def test_a_file_that_is_no_image_is_one_line(name: str, line: str, tmp_path: Path) -> None:
    if name != "b.nii":
        (tmp_path / name).write_text("a text")
    with pytest.raises(DataError, match=line) as error:
        read_series(tmp_path / name)
    assert "\n" not in str(error.value)


def test_one_series_given_twice_is_seen_whatever_its_file_is_called(tmp_path: Path) -> None:
    save(volume(), tmp_path / "a.nii.gz")
    save(volume(), tmp_path / "b.nrrd")
    with pytest.raises(DataError, match=r"--t1 .*a\.nii\.gz and --t2 .*b\.nrrd are one series"):
        read_all({"t1": tmp_path / "a.nii.gz", "t2": tmp_path / "b.nrrd"})


def test_series_of_two_patients_are_refused_without_their_names(tmp_path: Path) -> None:
    dicom.write_series(volume(seed=1), tmp_path / "one")
    dicom.write_series(volume(seed=2), tmp_path / "other", number="PID-0815", name="Roe^Richard")
    with pytest.raises(DataError, match="are of two patients") as error:
        read_all({"t1": tmp_path / "one", "flair": tmp_path / "other"})
    assert not [word for word in (*dicom.SECRETS, "0815", "Roe") if word in str(error.value)]
