"""A rotated or shrunk sample shows what lies around its patch, and no other sample reads more."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities import move_data_to_device

from bts_lightning.data.augment import Affine, Augment, Flip, Noise
from bts_lightning.data.patches import PatchLoader
from bts_lightning.data.samples import PatchDataset
from bts_lightning.data.transform import Inside, Patch
from bts_lightning.modalities import COMPLETE, Subset

SIZE, PATCH = (40, 44, 48), (12, 10, 14)


@dataclass(frozen=True)
class ArrayCase:
    """A case in memory."""

    image: np.ndarray
    label: np.ndarray
    name: str = "a"
    available: Subset = COMPLETE
    origin: tuple[int, int, int] = (0, 0, 0)

    @property
    def foreground(self) -> np.ndarray:
        return np.zeros((0, 4), np.int16)


def case(size: tuple[int, int, int] = SIZE) -> ArrayCase:
    """Fill a case with values that say where they come from; nothing in it is background."""
    chance = np.random.default_rng(0)
    image = chance.uniform(1, 2, (4, *size)).astype(np.float16)
    return ArrayCase(image, chance.integers(1, 4, size).astype(np.uint8))


def loader(affine: Affine | None, *, flip: float = 0.5, **options: Any) -> PatchLoader:
    augment = Augment({"affine": affine})
    if options.pop("here", False):
        options["augment"] = augment.fill
    patches = PatchDataset(
        [options.pop("case", None) or case()],
        samples=24,
        patch=PATCH,
        flip=flip,
        transforms=options.pop("transforms", None),
        reach=augment.reach,
    )
    return PatchLoader(patches, **options)


def augmented(affine: Affine, batch: dict[str, Any]) -> dict[str, Any]:
    return Augment({"affine": affine})(move_data_to_device(batch, torch.device("cpu")))


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_sample_is_cut_from_the_rotated_case(flip: float) -> None:
    affine = Affine(p_rotation=0.7, p_scale=0.7)
    for step, batch in enumerate(read := loader(affine, flip=flip, workers=0)):
        sample = read.patches.draw(0, step)
        middle = [c + p / 2 for c, p in zip(sample.corner, PATCH, strict=True)]
        whole = torch.from_numpy(sample.volume.astype(np.float32))
        truth = torch.from_numpy(np.asarray(sample.truth))
        if flip:
            middle = [n - c for n, c in zip(SIZE, middle, strict=True)]
            whole, truth = whole.flip(1, 2, 3), truth.flip(0, 1, 2)
        d, h, w = middle
        given = Patch(whole, truth, whole != 0, Inside(PATCH, (d, h, w)))
        expected = Augment({"affine": affine})._sample(given, sample.seed)
        result = augmented(affine, batch)
        if expected.inside is not None:
            assert batch["around"] == [None]  # not touched
            continue
        torch.testing.assert_close(result["image"][0], expected.image, rtol=0, atol=1e-3)
        # Rounding may take the other of two voxels that are equally near.
        assert (result["label"][0] == expected.label).double().mean() > 0.995
        assert "around" not in result


@pytest.mark.parametrize(
    ("p_rotation", "p_scale", "bare"), [(1.0, 0.0, 0.15), (0.0, 1.0, 0.05), (1.0, 1.0, 0.2)]
)
def test_hardly_any_background_comes_in(p_rotation: float, p_scale: float, bare: float) -> None:
    # nnU-Net, which reads a box of a fixed size, comes to 0.0001, 0 and 0.01.
    affine = Affine(p_rotation=p_rotation, p_scale=p_scale)
    reach = Augment({"it": affine}).reach
    middle = PatchDataset([case((90, 90, 90))], samples=40, patch=PATCH, reach=reach)
    middle._corner = lambda *_: (39, 40, 38)  # type: ignore[method-assign]  # far from the border
    around, alone = [], []
    for batch in PatchLoader(middle, workers=0):
        augment = Augment({"it": affine})
        around.append((augment(batch)["image"] == 0).double().mean())
        del batch["around"]
        alone.append((augment(batch)["image"] == 0).double().mean())
    assert max(around) == 0
    assert sum(alone) / 40 > bare


def test_only_samples_that_need_more_read_more() -> None:
    assert all(batch["around"] == [None] for batch in loader(None))
    still = Affine(p_rotation=0, p_scale=0)
    grown = Affine(p_rotation=0, p_scale=1, scale=(0.6, 0.8))
    for affine in (still, grown):
        assert all(batch["around"] == [None] for batch in loader(affine))
    some = [batch["around"][0] for batch in loader(Affine(p_rotation=0.5, p_scale=0))]
    assert 0 < sum(box is None for box in some) < len(some)


def test_a_box_ends_where_the_case_does() -> None:
    small = case((14, 8, 15))
    affine = Affine(p_rotation=1, p_scale=1, scale=(1.3, 1.4))
    for batch in loader(affine, case=small):
        (box,) = batch["around"]
        if box is not None:
            assert all(a <= b for a, b in zip(box["label"].shape, small.label.shape, strict=True))
        assert augmented(affine, batch)["image"].shape[2:] == PATCH


@pytest.mark.parametrize("size", [SIZE, (14, 8, 15)])
def test_a_processor_turns_a_sample_as_a_device_does(size: tuple[int, int, int]) -> None:
    whole = case(size)
    whole.image[1, :, 3:5] = 0
    options: dict[str, Any] = {"workers": 0, "case": whole}
    turned = 0
    for affine in (Affine(p_rotation=0.7, p_scale=0.7), Affine(p_rotation=1, scaling="each")):
        there, here = loader(affine, **options), loader(affine, here=True, **options)
        for batch, found in zip(there, here, strict=True):
            turned += batch["around"] != [None]
            expected = augmented(affine, batch)
            # Rounding may take the other of two voxels that are equally near, brain or not.
            label, image = found["label"] == expected["label"], found["image"] - expected["image"]
            assert label.double().mean() > 0.998
            assert (image.abs() < 1e-5).double().mean() > 0.998
            assert image.dtype == torch.float32
    assert turned > 20


def test_a_processor_runs_first_what_stands_before_the_turn() -> None:
    noise = {"noise": Noise(p=1), "affine": Affine(p_rotation=1)}
    augment = Augment(noise)
    patches = PatchDataset([case()], samples=4, patch=PATCH, reach=augment.reach)
    there, here = PatchLoader(patches), PatchLoader(patches, augment=augment.fill)
    for batch, found in zip(there, here, strict=True):
        torch.testing.assert_close(found["image"], augment(batch)["image"])


@pytest.mark.parametrize("how", ["threads", "processes"])
def test_threads_and_processes_read_the_same(how: str) -> None:
    transforms = None
    if how == "processes":
        torchio: Any = pytest.importorskip("torchio")
        transforms = {"flip": torchio.RandomFlip(axes=0, flip_probability=1.0)}
    affine = Affine(p_rotation=0.6, p_scale=0.2)
    batches = []
    for workers in (0, 2):
        read = loader(affine, workers=workers, batch_size=2, transforms=transforms)
        batches.append([augmented(affine, batch) for batch in read])
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["label"], other["label"])


def test_what_stands_before_the_affine_sees_the_box_and_keeps_its_centre() -> None:
    affine = Affine(p_rotation=1, p_scale=0)
    augment = Augment({"flip": Flip(per_axis=1), "noise": Noise(p=1), "affine": affine})
    box = torch.ones(4, 20, 30, 25)
    box[:, :, :20] = 3  # the patch lies here alone, whatever the turn
    patch = {
        "image": torch.ones(1, 4, 4, 4, 4),
        "label": torch.zeros(1, 4, 4, 4, dtype=torch.uint8),
        "available": torch.ones(1, 4, dtype=torch.bool),
        "around": [{"image": box, "label": box[0].byte(), "centre": (10.0, 10.0, 12.0)}],
        "seed": [3],
    }
    assert (augment(patch)["label"] == 3).all()
