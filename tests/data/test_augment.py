"""Augmentation on the device: what each transform must not change."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bts_lightning.data.augment import (
    Affine,
    Augment,
    Blur,
    Brightness,
    Contrast,
    Flip,
    Gamma,
    LowResolution,
    Noise,
    ScaleShift,
)
from bts_lightning.data.patches import PatchLoader
from bts_lightning.data.samples import PatchDataset
from bts_lightning.data.transform import Chance, Patch, Transform
from bts_lightning.modalities import Subset

SIZE = (12, 16, 14)

# Each does something in every sample.
SPATIAL: list[Transform] = [Flip(per_axis=1), Affine(p_rotation=1, p_scale=1)]
INTENSITY: list[Transform] = [
    Noise(p=1, std=(0.5, 0.5)),
    Blur(p=1, per_channel=1),
    Brightness(p=1),
    Contrast(p=1),
    Gamma(p=1),
    Gamma(p=1, invert=True),
    LowResolution(p=1, per_channel=1, zoom=(0.5, 0.7)),
    ScaleShift(),
    ScaleShift(per="slice"),
    ScaleShift(per="sample"),
]
ALL = SPATIAL + INTENSITY


def type_of(transform: Transform) -> str:
    return type(transform).__name__


def ball(size: tuple[int, int, int] = SIZE, radius: float = 0.8) -> Tensor:
    axes = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in size], indexing="ij")
    return sum(axis**2 for axis in axes) < radius**2  # type: ignore[union-attr]


def batch(samples: int = 2, seed: int = 0) -> dict[str, Any]:
    source = torch.Generator().manual_seed(seed)
    image = torch.randn(samples, 4, *SIZE, generator=source) * ball()
    label = torch.randint(0, 4, (samples, *SIZE), generator=source).byte() * ball(radius=0.4)
    return {
        "image": image.half(),
        "label": label,
        "present": torch.ones(samples, 4, dtype=torch.bool),
        "available": torch.ones(samples, 4, dtype=torch.bool),
        "case": [f"case{i}" for i in range(samples)],
        "seed": list(range(7, 7 + samples)),
    }


def through(transform: Transform, given: dict[str, Any]) -> dict[str, Any]:
    return Augment({"it": transform})(given)


@dataclass(frozen=True)
class ArrayCase:
    """A case in memory, of the size of the patch."""

    image: np.ndarray
    label: np.ndarray
    name: str = "a"
    available: Subset = (True, True, False, True)
    origin: tuple[int, int, int] = (0, 0, 0)

    @property
    def foreground(self) -> np.ndarray:
        return np.zeros((0, 4), np.int16)


# --- the same by a processor ---

PIPELINE = dict(zip("abcdefghijkl", ALL, strict=True))


@pytest.mark.parametrize(
    "transforms", [*({"it": each} for each in ALL), PIPELINE], ids=[*map(type_of, ALL), "all"]
)
def test_a_processor_does_what_a_device_does(transforms: dict[str, Transform]) -> None:
    given = batch(1)
    case = ArrayCase(given["image"][0].numpy(), given["label"][0].numpy())
    augment = Augment(transforms)
    patches = PatchDataset([case], samples=8, patch=SIZE, reach=augment.reach)
    there, here = PatchLoader(patches), PatchLoader(patches, augment=augment.fill)
    for raw, found in zip(there, here, strict=True):
        expected = augment(raw)
        assert "around" not in found
        # Rounding may take the other of two voxels that are equally near.
        near = (found["image"] - expected["image"]).abs() < 2e-5
        assert near.double().mean() > 0.999
        assert (found["label"] == expected["label"]).double().mean() > 0.999
        assert (found["image"][:, 2] == 0).all()


# --- what holds for every transform ---


@pytest.mark.parametrize("transform", ALL, ids=type_of)
def test_a_transform_changes_the_image_and_keeps_its_type(transform: Transform) -> None:
    given = batch()
    result = through(transform, given)
    assert result["image"].dtype == torch.float32
    assert result["image"].shape == given["image"].shape
    for i in range(2):
        assert not torch.equal(result["image"][i], given["image"][i].float())
    assert result["image"].isfinite().all()


@pytest.mark.parametrize("transform", ALL, ids=type_of)
def test_the_argument_stays_as_it_was(transform: Transform) -> None:
    given, copy = batch(), batch()
    given["image"] = given["image"].float()  # so that no cast makes a copy
    through(transform, given)
    assert torch.equal(given["image"], copy["image"].float())
    assert torch.equal(given["label"], copy["label"])


@pytest.mark.parametrize("transform", INTENSITY, ids=type_of)
def test_background_and_labels_stay(transform: Transform) -> None:
    given = batch()
    result = through(transform, given)
    assert (result["image"][given["image"] == 0] == 0).all()
    assert torch.equal(result["label"], given["label"])


@pytest.mark.parametrize("transform", SPATIAL, ids=type_of)
def test_background_and_labels_move_with_the_image(transform: Transform) -> None:
    given = batch()
    # One in the brain, so that what was brain can be told from what was not.
    given["image"] = (given["image"] != 0).half()
    given["label"] = (given["image"][:, 0] != 0).byte() * 3
    result = through(transform, given)
    assert torch.equal(result["image"][:, 0] != 0, result["label"] != 0)
    assert set(result["label"].unique().tolist()) == {0, 3}
    assert result["label"].dtype == torch.uint8


@pytest.mark.parametrize("transform", ALL, ids=type_of)
def test_an_absent_modality_stays_and_its_nan_does_not_spread(transform: Transform) -> None:
    given, clean = batch(), batch()
    given["available"][0, 2] = clean["available"][0, 2] = False
    given["image"][0, 2] = torch.nan
    clean["image"][0, 2] = 0
    result, expected = through(transform, given), through(transform, clean)
    assert result["image"][0, 2].isnan().all()
    assert (expected["image"][0, 2] == 0).all()
    assert torch.equal(result["image"][0, [0, 1, 3]], expected["image"][0, [0, 1, 3]])
    assert torch.equal(result["label"], expected["label"])


@pytest.mark.parametrize("transform", ALL, ids=type_of)
def test_a_channel_depends_on_itself_alone(transform: Transform) -> None:
    given, other = batch(), batch()
    other["image"][:, 1] = other["image"][:, 1].flip(-1) * 3 + 1
    result, expected = through(transform, given), through(transform, other)
    rest = [0, 2, 3]
    assert torch.equal(result["image"][:, rest], expected["image"][:, rest])


@pytest.mark.parametrize("transform", ALL, ids=type_of)
def test_a_sample_depends_on_its_seed_and_not_on_its_place(transform: Transform) -> None:
    given = batch()
    together = through(transform, given)
    row = {key: value[1:] for key, value in given.items()}
    assert torch.equal(through(transform, row)["image"][0], together["image"][1])
    given["seed"] = [7, 7]
    given["image"][1] = given["image"][0]
    twins = through(transform, given)["image"]
    assert torch.equal(twins[0], twins[1])


@pytest.mark.parametrize("transform", ALL, ids=type_of)
def test_the_global_generator_is_left_alone(transform: Transform) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    through(transform, batch())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("transform", ALL, ids=type_of)
def test_an_empty_patch_stays_empty(transform: Transform) -> None:
    given = batch()
    given["image"].zero_()
    assert (through(transform, given)["image"] == 0).all()


# --- the pipeline ---


def test_no_transform_gives_the_image_as_float32() -> None:
    given = batch()
    result = Augment({})(given)
    assert torch.equal(result["image"], given["image"].float())
    assert result["case"] == given["case"]


def test_taking_a_transform_out_leaves_the_others_as_they_were() -> None:
    given = batch()
    noise = Noise(p=1)
    both = Augment({"flip": Flip(per_axis=0), "noise": noise})(given)
    alone = Augment({"flip": None, "noise": noise})(given)
    assert torch.equal(both["image"], alone["image"])


def test_p_is_the_share_of_samples_that_are_touched() -> None:
    given = batch(1)
    touched = 0
    for seed in range(200):
        given["seed"] = [seed]
        touched += not torch.equal(through(Noise(p=0.3), given)["image"], given["image"].float())
    assert 40 < touched < 80


def test_p_must_be_a_probability() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Noise(p=1.2)


def test_a_range_must_be_in_order_and_positive() -> None:
    with pytest.raises(ValueError, match="the smaller first"):
        Gamma(gamma=(1.5, 0.7))
    with pytest.raises(ValueError, match="zoom is"):
        LowResolution(zoom=(0.0, 1.0))


# --- each for itself ---


def patch_of(image: Tensor, label: Tensor | None = None) -> Patch:
    image = image.expand(4, *image.shape[-3:]).clone()
    label = torch.zeros(image.shape[1:], dtype=torch.uint8) if label is None else label
    return Patch(image, label, image != 0)


def test_flip_mirrors_each_axis_by_itself() -> None:
    corner = torch.zeros(2, 2, 2)
    corner[0, 0, 0] = 1
    where = {
        tuple(np.argwhere(Flip().apply(patch_of(corner), Chance(seed, "")).image[0].numpy())[0])
        for seed in range(100)
    }
    assert len(where) == 8


class QuarterTurn(Affine):
    """A turn by 90°, whose result is known by hand."""

    def _rotation(self, chance: Chance) -> np.ndarray:
        return np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]])


def test_a_quarter_turn_is_exact() -> None:
    image = torch.arange(1.0, 6 * 8 * 8 + 1).reshape(6, 8, 8)
    label = (image % 4).byte()
    turned = QuarterTurn(p_rotation=1, p_scale=0).apply(patch_of(image, label), Chance(0, ""))
    expected = image.rot90(-1, (1, 2))
    torch.testing.assert_close(turned.image[0], expected, rtol=1e-4, atol=1e-3)
    assert torch.equal(turned.label, label.rot90(-1, (1, 2)))


def test_an_anisotropic_patch_is_turned_without_shear() -> None:
    # A bar along H of a flat patch must become a bar of the same length along W.
    image = torch.zeros(3, 16, 32)
    image[:, 3:13, 15:17] = 1
    turned = QuarterTurn(p_rotation=1, p_scale=0).apply(patch_of(image), Chance(0, ""))
    expected = torch.zeros(3, 16, 32)
    expected[:, 7:9, 11:21] = 1
    torch.testing.assert_close(turned.image[0], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("factor", "voxels"), [(2.0, 4**3), (0.5, 16**3)])
def test_a_scale_above_one_shrinks_the_anatomy(factor: float, voxels: int) -> None:
    cube = torch.zeros(16, 16, 16)
    cube[4:12, 4:12, 4:12] = 1
    scaled = Affine(p_rotation=0, p_scale=1, scale=(factor, factor))
    assert scaled.apply(patch_of(cube), Chance(0, "")).brain[0].sum() == voxels


def test_rotation_in_one_plane_keeps_an_axis() -> None:
    image = torch.rand(8, 8, 8, generator=torch.Generator().manual_seed(0)) + 1
    image = image[:1].expand(8, 8, 8)  # constant along D
    turns = Affine(rotation=20, p_rotation=1, p_scale=0, planes="one")
    kept = 0
    for seed in range(30):
        turned = turns.apply(patch_of(image), Chance(seed, "")).image[0]
        kept += torch.allclose(turned[3], turned[4], atol=1e-4)
    assert 3 < kept < 20


def test_no_rotation_is_by_more_than_the_largest_angle() -> None:
    turns = Affine(rotation=15, p_rotation=1, p_scale=0, planes="one")
    cosines = [np.trace(turns._rotation(Chance(seed, ""))) / 2 - 0.5 for seed in range(100)]
    angles = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
    assert 12 < angles.max() <= 15.001


def test_noise_has_the_deviation_that_was_asked_for() -> None:
    given = patch_of(torch.ones(32, 32, 32))
    noise = Noise(p=1, std=(0.3, 0.3)).apply(given, Chance(0, "")).image - given.image
    assert abs(float(noise.std()) - 0.3) < 0.01
    assert abs(float(noise.mean())) < 0.01
    assert not torch.equal(noise[0], noise[1])


def test_blur_of_a_point_is_a_gaussian() -> None:
    point = torch.zeros(21, 21, 21)
    point[10, 10, 10] = 1
    given = Patch(point.expand(4, 21, 21, 21), point.byte(), torch.ones(4, 21, 21, 21).bool())
    blurred = Blur(p=1, per_channel=1, sigma=(1.0, 1.0)).apply(given, Chance(0, "")).image[0]
    torch.testing.assert_close(blurred.sum(), torch.tensor(1.0))
    torch.testing.assert_close(blurred[10, 10, 11] / blurred[10, 10, 10], torch.tensor(-0.5).exp())
    torch.testing.assert_close(blurred[9, 10, 10], blurred[10, 10, 11])
    assert blurred[10, 11, 10] == blurred[10, 9, 10]


def test_blur_keeps_a_constant_up_to_the_edge() -> None:
    given = patch_of(torch.full((5, 9, 7), 2.0))
    blurred = Blur(p=1, per_channel=1).apply(given, Chance(0, "")).image
    torch.testing.assert_close(blurred, given.image)


def test_brightness_has_a_factor_for_each_channel() -> None:
    given = batch(1)
    factor = through(Brightness(p=1, factor=(0.5, 2.0)), given)["image"] / given["image"].float()
    factor = factor[0][:, *SIZE_CENTRE]
    assert len(factor.unique()) == 4
    assert ((factor > 0.5) & (factor < 2)).all()


def test_contrast_keeps_the_mean_and_the_extremes() -> None:
    given = batch(1)
    brain = given["image"][0, 0] != 0
    before = given["image"][0, 0].float()[brain]
    lower = through(Contrast(p=1, factor=(0.5, 0.5)), given)["image"][0, 0][brain]
    torch.testing.assert_close(lower.mean(), before.mean())
    torch.testing.assert_close(lower.std(), before.std() / 2)
    higher = through(Contrast(p=1, factor=(2.0, 2.0)), given)["image"][0, 0][brain]
    assert higher.min() == before.min()
    assert higher.max() == before.max()


@pytest.mark.parametrize("invert", [False, True])
def test_gamma_keeps_mean_deviation_and_order(invert: bool) -> None:
    given = batch(1)
    brain = given["image"][0, 0] != 0
    before = given["image"][0, 0].float()[brain]
    after = through(Gamma(p=1, gamma=(2.0, 2.0), invert=invert), given)["image"][0, 0][brain]
    torch.testing.assert_close(after.mean(), before.mean(), atol=1e-5, rtol=0)
    torch.testing.assert_close(after.std(), before.std(), atol=1e-4, rtol=0)
    assert (after[before.argsort()].diff() >= 0).all()
    # The square draws the dark together; on the negative, the bright.
    spread = after.max() - after.median() > after.median() - after.min()
    assert bool(spread) is not invert


def test_low_resolution_makes_neighbours_alike() -> None:
    given = batch(1)
    coarse = through(LowResolution(p=1, per_channel=1, zoom=(0.5, 0.5)), given)["image"][0, 0]
    fine = given["image"][0, 0].float()
    inner = (slice(4, 8), slice(5, 11), slice(4, 10))
    assert coarse[inner].diff(dim=0).abs().mean() < 0.6 * fine[inner].diff(dim=0).abs().mean()


def test_full_resolution_changes_nothing() -> None:
    given = batch(1)
    result = through(LowResolution(p=1, per_channel=1, zoom=(1.0, 1.0)), given)
    torch.testing.assert_close(result["image"], given["image"].float())


def test_scale_and_shift_are_drawn_for_each_sample_channel_or_slice() -> None:
    given = patch_of(torch.ones(6, 5, 4))
    by_channel = ScaleShift().apply(given, Chance(0, "")).image
    assert len(by_channel.unique()) == 4
    by_slice = ScaleShift(per="slice").apply(given, Chance(0, "")).image
    assert len(by_slice.unique()) == 4 * 6
    assert (by_slice == by_slice[:, :, :1, :1]).all()
    assert ((by_slice > 0.8) & (by_slice < 1.2)).all()
    assert len(ScaleShift(per="sample").apply(given, Chance(0, "")).image.unique()) == 1


def test_factors_around_one_fall_below_in_half_of_the_samples() -> None:
    drawn = np.array([Chance(seed, "").around_one((0.7, 1.5)) for seed in range(400)])
    assert 0.7 <= drawn.min() < 0.75
    assert 1.4 < drawn.max() <= 1.5
    assert abs((drawn < 1).mean() - 0.5) < 0.08
    assert all(1.2 <= Chance(seed, "").around_one((1.2, 1.4)) <= 1.4 for seed in range(50))
    assert all(0.5 <= Chance(seed, "").around_one((0.5, 0.8)) <= 0.8 for seed in range(50))


SIZE_CENTRE = tuple(length // 2 for length in SIZE)
