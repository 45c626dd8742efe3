"""Patches where TorchIO's samplers put them: by (seed, epoch, index) and by nothing else."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torchio

from bts_lightning.data.module import BratsDataModule
from bts_lightning.data.patches import PatchLoader
from bts_lightning.data.samples import PatchDataset
from bts_lightning.data.sampling import TorchioSampler
from bts_lightning.errors import ConfigError
from tests.data.arrays import ArrayCase

Three = tuple[int, int, int]


def case(size: Three = (12, 14, 16), tumour: Three | None = (6, 7, 8)) -> ArrayCase:
    image = np.zeros((4, *size), np.float16)
    image[:, 2:-2, 2:-2, 2:-2] = 1
    label = np.zeros(size, np.uint8)
    if tumour:
        label[tumour] = 1
    return ArrayCase("case", image, label)


def corners(sampler: Any, given: ArrayCase, count: int = 40, **options: Any) -> list[Three]:
    there = TorchioSampler(sampler, (8, 8, 8))
    patches = PatchDataset([given], patch=8, flip=0, sampler=there, samples=count, **options)
    return [patches.draw(0, index).corner for index in range(count)]


def test_a_uniform_sampler_reaches_every_place_and_no_other() -> None:
    found = np.array(corners(torchio.UniformSampler, case(), 200))
    assert found.min(axis=0).tolist() == [0, 0, 0]
    assert found.max(axis=0).tolist() == [4, 6, 8]


def test_a_label_sampler_centres_on_the_tumour() -> None:
    assert set(corners(torchio.LabelSampler, case())) == {(2, 3, 4)}


def test_a_label_sampler_takes_the_classes_as_it_is_told() -> None:
    given = case()
    given.label[6, 6, 6] = 2
    sampler = partial(torchio.LabelSampler, label_probabilities={1: 1, 2: 3})
    found = corners(sampler, given, 200)
    assert set(found) == {(2, 3, 4), (2, 2, 2)}
    assert 120 < found.count((2, 2, 2)) < 180


def test_a_weighted_sampler_centres_in_the_brain() -> None:
    sampler = partial(torchio.WeightedSampler, probability_map="brain")
    given = case(size=(24, 24, 24))
    given.image[:] = 0
    given.image[1, 10:12, 10:12, 10:12] = 1
    assert {edge for corner in corners(sampler, given) for edge in corner} == {6, 7}


def test_a_tumour_at_the_border_is_in_the_patch_though_not_in_its_middle() -> None:
    assert set(corners(torchio.LabelSampler, case(tumour=(0, 7, 15)))) == {(0, 3, 8)}


def test_a_case_without_tumour_is_sampled_uniformly() -> None:
    assert len(set(corners(torchio.LabelSampler, case(tumour=None)))) > 20


def test_a_volume_smaller_than_the_patch_lies_in_its_middle() -> None:
    ours = PatchDataset([case((5, 14, 6), None)], patch=8).draw(0, 0).corner
    for sampler in (torchio.UniformSampler, torchio.LabelSampler):
        for d, h, w in corners(sampler, case((5, 14, 6), (2, 7, 3)), 5):
            assert (d, w) == (ours[0], ours[2]) == (-1, -1)
            assert 0 <= h <= 6


def test_samples_are_the_same_for_workers_ranks_and_a_resume() -> None:
    cases = [case((12, 14, 16 + i)) for i in range(3)]
    cases = [ArrayCase(f"case{i}", one.image, one.label) for i, one in enumerate(cases)]
    sampler = TorchioSampler(torchio.UniformSampler, (8, 8, 8))
    patches = PatchDataset(cases, patch=8, samples=8, seed=5, sampler=sampler)
    torch.manual_seed(1)
    state = torch.get_rng_state()

    def read(**options: Any) -> list[dict[str, Any]]:
        return list(PatchLoader(patches, **options))

    whole = read(batch_size=4, workers=0)
    threads = read(batch_size=4, workers=2)
    ranks = [read(batch_size=2, workers=0, rank=rank, world=2) for rank in (0, 1)]
    resumed = PatchLoader(patches, batch_size=4, workers=0)
    resumed.load_state_dict({"epoch": 0, "batch": 1, "step": 4, "steps": 2})
    assert torch.equal(torch.get_rng_state(), state)
    for step, batch in enumerate(whole):
        assert torch.equal(batch["image"], threads[step]["image"])
        assert torch.equal(batch["image"], torch.cat([rank[step]["image"] for rank in ranks]))
    (last,) = resumed
    assert torch.equal(last["image"], whole[1]["image"])


def test_what_a_sampler_refuses_names_the_case() -> None:
    sampler = partial(torchio.WeightedSampler, probability_map="t1")
    with pytest.raises(ConfigError, match=r"^data.sampler \(WeightedSampler\) failed on case case"):
        corners(sampler, case())


def test_a_sampler_that_is_not_random_and_a_second_rule_are_refused(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match=r"data.sampler is a GridSampler, which draws no patch"):
        BratsDataModule(tmp_path, sampler=partial(torchio.GridSampler))
    with pytest.raises(ValueError, match=r"set data.foreground=0 or data.sampler=null"):
        BratsDataModule(tmp_path, foreground=0.5, sampler=torchio.UniformSampler)
