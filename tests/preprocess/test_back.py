"""What is found on BraTS's grid goes to the scanner's grids, and labels come back."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from bts_lightning.data.cache.nifti import read_nifti, write_nifti
from bts_lightning.preprocess.back import affine_of, carry, carry_labels


def labelled(values: NDArray[np.generic], spacing: tuple[float, ...] = (1, 1, 1)) -> sitk.Image:
    image = sitk.GetImageFromArray(np.ascontiguousarray(values.T).astype(np.uint8))
    image.SetSpacing(spacing)
    return image


def ball(diameter: float) -> NDArray[np.bool_]:
    where = np.indices((48, 48, 48)).transpose(1, 2, 3, 0) - (23.3, 24.2, 23.7)
    return np.linalg.norm(where, axis=-1) <= diameter / 2


def moved() -> sitk.Euler3DTransform:
    transform = sitk.Euler3DTransform()
    transform.SetCenter((24, 24, 24))
    transform.SetRotation(0.2, -0.25, 0.1)
    transform.SetTranslation((2.5, -1.5, 2.0))
    return transform


def dice(one: sitk.Image, other: sitk.Image) -> float:
    a, b = (sitk.GetArrayViewFromImage(image) > 0 for image in (one, other))
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize("offset", [0.0, 1.1, 2.2, 3.3, 4.4])
def test_a_ball_survives_thick_slices(offset: float) -> None:
    drawn = labelled(ball(20.0))
    scan = sitk.Image([60, 60, 12], sitk.sitkUInt8)
    scan.SetSpacing((0.9, 0.9, 5.5))
    scan.SetOrigin((-3.0, -3.0, offset - 5.5))
    on_scan = carry_labels(drawn, scan, moved())
    back = carry_labels(on_scan, drawn, moved().GetInverse())
    assert dice(back, drawn) >= 0.95


def test_labels_that_touch_stay_apart_and_keep_their_values() -> None:
    values = np.where(ball(30.0), 2, 0)
    values[ball(16.0)] = 4
    there = carry_labels(labelled(values), labelled(values), moved())
    back = carry_labels(there, there, moved().GetInverse())
    for value in (2, 4):
        assert dice(back == value, labelled(values == value)) > 0.93
    assert set(np.unique(sitk.GetArrayFromImage(back))) == {0, 2, 4}


def test_an_identity_changes_nothing() -> None:
    values = np.random.default_rng(0).integers(0, 4, (9, 8, 7))
    image = labelled(values, (1.0, 1.1, 5.5))
    same = carry_labels(image, image, sitk.Transform())
    np.testing.assert_array_equal(sitk.GetArrayFromImage(same), sitk.GetArrayFromImage(image))
    shares = np.random.default_rng(0).random((3, 9, 8, 7), np.float32)
    np.testing.assert_array_equal(carry(shares, image, image, sitk.Transform()), shares)


def test_a_thin_structure_survives_as_a_probability() -> None:
    # A sheet of one voxel, half a voxel off the other grid: nearest neighbours would tear it.
    shares = np.zeros((2, 12, 12, 12), np.float32)
    shares[1, :, :, 5] = 0.9
    shares[0] = 1 - shares[1]
    grid = labelled(np.zeros((12, 12, 12)))
    shift = sitk.TranslationTransform(3, (0.0, 0.0, 0.4))
    carried = carry(shares, grid, grid, shift)
    assert carried.argmax(axis=0)[2:-2, 2:-2, 5].all()
    np.testing.assert_allclose(carried[:, 2:-2, 2:-2, 2:-2].sum(axis=0), 1, atol=1e-5)


def test_the_affine_is_that_of_the_file(tmp_path: Path) -> None:
    affine = np.array([[0.0, 0.9, 0.0, -80], [-0.8, 0, 0.0, 70], [0, 0, 5.5, -40], [0, 0, 0, 1]])
    file = tmp_path / "a.nii.gz"
    write_nifti(np.zeros((4, 5, 6), np.uint8), affine, file)
    np.testing.assert_allclose(affine_of(sitk.ReadImage(str(file))), affine, atol=1e-5)
    np.testing.assert_allclose(read_nifti(file).affine, affine, atol=1e-5)
