"""TorchIO transforms on training patches."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torchio

from bts_lightning.data.patches import PatchLoader
from bts_lightning.data.samples import PatchDataset
from bts_lightning.data.subjects import transform_patch
from bts_lightning.errors import ConfigError
from bts_lightning.modalities import COMPLETE, Subset, parse_subset

# Python 3.12 warns of any fork beside threads; torch's loader forks.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@dataclass(frozen=True)
class ArrayCase:
    """A case in memory."""

    name: str
    image: np.ndarray
    label: np.ndarray
    available: Subset = COMPLETE


def patch() -> tuple[np.ndarray, np.ndarray]:
    image = np.arange(1, 4 * 8**3 + 1, dtype=np.float16).reshape(4, 8, 8, 8) / 256
    label = np.zeros((8, 8, 8), np.uint8)
    label[1, 2, 3] = 3
    return image, label


def four_cases() -> list[ArrayCase]:
    return [ArrayCase(f"case{i}", *patch()) for i in range(4)]


def test_a_flip_moves_image_and_label() -> None:
    image, label = patch()
    before = image.copy()
    transform_patch([torchio.RandomFlip(axes=0, flip_probability=1)], image, label, COMPLETE, 0)
    assert np.array_equal(image, before[:, ::-1])
    assert label[6, 2, 3] == 3


def test_an_absent_modality_is_not_in_the_subject() -> None:
    image, label = patch()
    image[[0, 2]] = 0
    transform_patch([torchio.RandomNoise(std=(1, 1))], image, label, parse_subset("t1c+flair"), 0)
    assert (image[[0, 2]] == 0).all()
    assert label.sum() == 3


def test_a_transform_can_name_its_modality() -> None:
    image, label = patch()
    before = image.copy()
    transform_patch([torchio.RandomNoise(std=(1, 1), include=["t2"])], image, label, COMPLETE, 0)
    changed = [not np.array_equal(a, b) for a, b in zip(image, before, strict=True)]
    assert changed == [False, False, True, False]


def test_the_seed_decides_and_the_global_generator_stays() -> None:
    results = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed + 100)
        state = torch.get_rng_state()
        image, label = patch()
        transform_patch([torchio.RandomNoise(std=(1, 1))], image, label, COMPLETE, seed)
        assert torch.equal(state, torch.get_rng_state())
        results.append(image)
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_a_transform_that_changes_the_size_is_refused() -> None:
    image, label = patch()
    with pytest.raises(ConfigError, match="must keep the size"):
        transform_patch([torchio.CropOrPad(4)], image, label, COMPLETE, 0)


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
    with pytest.raises(ConfigError, match=r"^transform CropOrPad"):
        list(PatchLoader(patches, workers=1))
