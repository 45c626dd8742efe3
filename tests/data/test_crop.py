"""The compiled copy from volume to patch."""

from itertools import product

import numpy as np
import pytest

from bts_lightning.data.crop import copy_box

FLIPS = list(product([False, True], repeat=3))


def mirrored(box: np.ndarray, flips: tuple[bool, ...]) -> np.ndarray:
    return box[(slice(None), *(slice(None, None, -1 if flip else 1) for flip in flips))]


@pytest.mark.parametrize("flips", FLIPS)
@pytest.mark.parametrize(
    ("kind", "kept"), [(np.float16, np.float16), (np.uint8, np.uint8), (np.float16, np.float32)]
)
def test_a_box_inside_is_the_crop_that_numpy_gives(
    flips: tuple[bool, bool, bool], kind: type[np.generic], kept: type[np.generic]
) -> None:
    volume = np.random.default_rng(0).integers(0, 250, (2, 9, 8, 7)).astype(kind)
    volume.flags.writeable = False  # as a memory map is
    patch = np.zeros((2, 4, 5, 6), kept)
    copy_box(patch, volume, (5, 2, 1), flips)
    assert np.array_equal(patch, mirrored(volume[:, 5:9, 2:7, 1:7], flips))


@pytest.mark.parametrize("flips", FLIPS)
def test_a_box_over_every_edge_keeps_what_the_patch_had(flips: tuple[bool, bool, bool]) -> None:
    volume = np.random.default_rng(0).integers(1, 250, (1, 3, 4, 5)).astype(np.uint8)
    patch = np.zeros((1, 8, 8, 8), np.uint8)
    copy_box(patch, volume, (-2, -1, -3), flips)
    expected = np.pad(volume, ((0, 0), (2, 3), (1, 3), (3, 0)))
    assert np.array_equal(patch, mirrored(expected, flips))


def test_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match="volume is float32"):
        copy_box(
            np.zeros((1, 2, 2, 2), np.float16),
            np.zeros((1, 2, 2, 2), np.float32),
            (0, 0, 0),
            (False, False, False),
        )


def test_a_volume_with_gaps_is_refused() -> None:
    volume = np.zeros((1, 4, 4, 4), np.uint8)[..., ::2]
    with pytest.raises(ValueError, match="without gaps"):
        copy_box(np.zeros((1, 2, 2, 2), np.uint8), volume, (0, 0, 0), (False, False, False))


def test_every_finite_float16_becomes_the_same_number() -> None:
    bits = np.arange(2**16, dtype=np.uint16).view(np.float16)
    volume = bits[np.isfinite(bits)].reshape(1, 62, 32, 32)
    patch = np.empty(volume.shape, np.float32)
    copy_box(patch, volume, (0, 0, 0), (False, False, False))
    assert np.array_equal(patch, volume.astype(np.float32))
