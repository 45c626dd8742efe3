from pathlib import Path

import numpy as np
import pytest

from bts_lightning.errors import DataError
from bts_lightning.report.slices import choose_slices, keep_slices, load_slices, save_slices
from tests.report.synthetic import slices

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def volumes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image with one bright voxel at the patient's left front of slice 2, tumour around it."""
    image = np.zeros((4, 6, 8, 5), np.float16)
    image[:, 1:5, 1:7, :] = 1
    image[3, 4, 1, 2] = 9
    truth = np.zeros((6, 8, 5), np.uint8)
    truth[4, 1, 2] = 3
    return image, truth, truth[None].copy()


def cut(image, truth, predicted, affine, spacing=(1.0, 1.0, 1.0), **options):
    names = ["flair"]
    return choose_slices(
        "a", image, truth, predicted, names, spacing=spacing, affine=affine, **options
    )


def test_left_is_shown_on_the_right_and_front_at_the_top() -> None:
    shown = cut(*volumes(), LPS)
    assert shown.positions == [2]
    # The voxel lies far to the left (array axis 0, column) and to the front (axis 1, row).
    assert np.argwhere(shown.images[3, 0] == 255).tolist() == [[1, 4]]
    assert np.argwhere(shown.truth[0] == 3).tolist() == [[1, 4]]


def test_any_orientation_of_the_file_looks_the_same() -> None:
    image, truth, predicted = volumes()
    usual = cut(image, truth, predicted, LPS, spacing=(1, 2, 3))
    # The same head stored as I-A-R: axes (S, P, L) all turned round.
    ira = [np.flip(x.swapaxes(-1, -3), axis=(-1, -2, -3)) for x in (image, truth, predicted)]
    affine = np.array([[0, 0, 1, 0], [0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1.0]])
    other = cut(*ira, affine, spacing=(3, 2, 1))
    np.testing.assert_array_equal(usual.images, other.images)
    np.testing.assert_array_equal(usual.predicted, other.predicted)
    assert usual.spacing == other.spacing == (2, 1)
    assert other.positions == [2]  # 5 slices, counted from the other end


def test_positions_are_those_of_the_uncropped_file() -> None:
    assert cut(*volumes(), LPS, start=(10, 20, 30)).positions == [32]


def test_background_stays_black_and_absent_modalities_too() -> None:
    image, truth, predicted = volumes()
    image[0] = 0
    shown = cut(image, truth, predicted, None)
    assert not shown.images[0].any()
    assert not shown.images[1][:, 0].any()
    assert (shown.images[1][:, 1:7, 1:5] > 0).all()


def test_slices_cover_the_tumour_with_its_largest_section() -> None:
    image = np.ones((4, 8, 8, 40), np.float16)
    truth = np.zeros((8, 8, 40), np.uint8)
    truth[2:4, 2:4, 5:30] = 2
    truth[1:7, 1:7, 11] = 2
    shown = cut(image, truth, truth[None], None, count=6)
    assert shown.positions[0] == 5
    assert shown.positions[-1] == 29
    assert 11 in shown.positions
    assert len(shown.positions) == 6


@pytest.mark.parametrize("has_truth", [True, False])
def test_a_case_without_any_tumour_shows_the_brain(has_truth: bool) -> None:
    image, truth, _ = volumes()
    nothing = np.zeros_like(truth)
    shown = cut(image, nothing if has_truth else None, nothing[None], None)
    assert shown.positions == [0, 1, 2, 3, 4]
    assert (shown.truth is not None) == has_truth


def test_slices_survive_the_way_through_a_file(tmp_path: Path) -> None:
    made = slices("site/a b", size=24, depth=8)
    file = save_slices(tmp_path, made)
    assert file.parent == tmp_path / "slices"
    (read,) = load_slices(tmp_path, ["site/a b", "never kept"])
    assert (read.case, read.subsets, read.positions) == (made.case, made.subsets, made.positions)
    np.testing.assert_array_equal(read.predicted, made.predicted)
    np.testing.assert_array_equal(read.truth, made.truth)


def test_only_the_kept_cases_stay(tmp_path: Path) -> None:
    for name in ("a", "b/c", "d"):
        save_slices(tmp_path, slices(name, size=16, depth=4))
    keep_slices(tmp_path, ["b/c", "not there"])
    assert [one.case for one in load_slices(tmp_path)] == ["b/c"]


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    file = save_slices(tmp_path, slices("a", size=16, depth=4))
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DataError, match=r"a\.npz: not readable as slices"):
        load_slices(tmp_path)
