"""TorchIO transforms on training patches."""

from typing import Any

import numpy as np
import pytest
import torch
import torchio
from numpy.typing import NDArray

from bts_lightning.data.patches import PatchLoader
from bts_lightning.data.samples import PatchDataset
from bts_lightning.data.transformed import transform_patch, without_copies
from bts_lightning.errors import ConfigError
from bts_lightning.modalities import COMPLETE, Subset, parse_subset
from tests.data.arrays import four_cases, patch

Array = NDArray[Any]

# Python 3.12 warns of any fork beside threads; torch's loader forks.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def transformed(
    transform: Any, image: Array, label: Array, available: Subset = COMPLETE, seed: int = 0
) -> None:
    one = without_copies(transform)
    transform_patch({"it": one}, image, label, available, seed, "the patch at 0 of case x")


def test_a_flip_moves_image_and_label() -> None:
    image, label = patch()
    before = image.copy()
    transformed(torchio.RandomFlip(axes=0, flip_probability=1), image, label)
    assert np.array_equal(image, before[:, ::-1])
    assert label[6, 2, 3] == 3


def test_an_absent_modality_is_not_in_the_subject() -> None:
    image, label = patch()
    image[[0, 2]] = 0
    transformed(torchio.RandomNoise(std=(1, 1)), image, label, parse_subset("t1c+flair"))
    assert (image[[0, 2]] == 0).all()
    assert label.sum() == 3


def test_a_transform_can_name_its_modality() -> None:
    image, label = patch()
    before = image.copy()
    transformed(torchio.RandomNoise(std=(1, 1), include=["t2"]), image, label)
    changed = [not np.array_equal(a, b) for a, b in zip(image, before, strict=True)]
    assert changed == [False, False, True, False]


def test_the_seed_decides_and_the_global_generator_stays() -> None:
    results = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed + 100)
        state = torch.get_rng_state()
        image, label = patch()
        transformed(torchio.RandomNoise(std=(1, 1)), image, label, seed=seed)
        assert torch.equal(state, torch.get_rng_state())
        results.append(image)
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_a_transform_that_changes_the_size_is_refused() -> None:
    image, label = patch()
    with pytest.raises(ConfigError, match="must keep the size"):
        transformed(torchio.CropOrPad(4), image, label)


def test_background_stays_zero_wherever_a_transform_moves_it() -> None:
    image, label = patch()
    image[1, :4] = 0
    noise, flip = torchio.RandomNoise(std=(1, 1)), torchio.RandomFlip(axes=0, flip_probability=1)
    transformed(torchio.Compose([noise, flip, noise]), image, label)
    assert not image[1, 4:].any()
    assert image[1, :4].all()
    assert image[0].all()


def test_a_subject_is_not_copied_and_the_result_is_the_same() -> None:
    class Holder(torchio.Transform):  # type: ignore[misc]
        def apply_transform(self, subject: Any) -> Any:
            held.append(subject["label"].data.data_ptr() == label.ctypes.data)
            return subject

    held: list[bool] = []
    images = []
    for change in (lambda x: x, without_copies):
        given = torchio.Compose([Holder(), torchio.OneOf([Holder()]), torchio.RandomNoise()])
        image, label = patch()
        transform_patch({"it": change(given)}, image, label, COMPLETE, 0, "")
        images.append(image)
    assert np.array_equal(*images)
    assert held == [False, False, True, True]
    assert given.copy, "that of the caller stays as it was"


@pytest.mark.parametrize("transform", ["Broken", "Thief"])
def test_what_goes_wrong_names_transform_and_patch(transform: str) -> None:
    from tests.data import broken

    told = {
        "Broken": r"failed on the patch at 0 of case x: ValueError: boom and more$",
        "Thief": r"takes away t2 from .* data.availability$",
    }
    line = rf"^data.transforms.it \({transform}\) {told[transform]}"
    with pytest.raises(ConfigError, match=line):
        transformed(getattr(broken, transform)(), *patch())


def test_worker_processes_give_the_batches_of_the_main_one() -> None:
    transforms = {
        "noise": torchio.RandomNoise(std=(0, 1)),
        "off": None,
        "flip": torchio.RandomFlip(),
    }
    patches = PatchDataset(four_cases(), patch=8, transforms=transforms)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    alone = list(PatchLoader(patches, batch_size=2, workers=0))
    apart = list(PatchLoader(patches, batch_size=2, workers=2))
    assert torch.equal(state, torch.get_rng_state())
    assert len(alone) == 2
    for one, other in zip(alone, apart, strict=True):
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["label"], other["label"])
        assert one["case"] == other["case"]


def test_a_wrong_transform_in_a_worker_is_one_clear_line() -> None:
    patches = PatchDataset(four_cases(), patch=8, transforms={"crop": torchio.CropOrPad(4)})
    with pytest.raises(ConfigError, match=r"^data.transforms.crop \(CropOrPad\) makes"):
        list(PatchLoader(patches, workers=1))
