"""Cases as TorchIO subjects: what they hold, what its tools make of them, modalities taken away."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchio as tio
from lightning import Trainer
from scipy.stats import chisquare
from torch.utils.data import DataLoader

from bts_lightning import config
from bts_lightning.availability import Availability, Bernoulli, SizeUniform, Uniform15
from bts_lightning.data.module import BratsDataModule
from bts_lightning.data.subjects import DropModalities, as_batch
from bts_lightning.modalities import MODALITIES, SUBSETS, Subset, parse_subset


@pytest.fixture(scope="module")
def data(phantom: Path) -> BratsDataModule:
    module = BratsDataModule(phantom, patch=16)
    module.prepare_data()
    module.setup("fit")
    return module


def subject(**more: Any) -> tio.Subject:
    images = {name: tio.ScalarImage(tensor=torch.ones(1, 2, 2, 2)) for name in MODALITIES}
    label = tio.LabelMap(tensor=torch.ones(1, 2, 2, 2, dtype=torch.uint8))
    return tio.Subject(**images, label=label, name="one", **more)


def test_subjects_hold_what_the_cache_holds_and_read_it_late(data: BratsDataModule) -> None:
    subjects = data.subjects("train")
    assert isinstance(subjects, tio.SubjectsDataset)
    assert [one["name"] for one in subjects.dry_iter()] == list(data.split.train)
    for one in subjects.dry_iter():
        assert not any(image._loaded for image in one.get_images(intensity_only=False))
    first, case = subjects[0], data.cases[data.split.train[0]]
    assert first["patient"] == case.patient
    assert case.label is not None
    assert np.array_equal(first["label"].data[0], case.label)
    for name, channel in zip(MODALITIES, case.image, strict=True):
        assert isinstance(first[name], tio.ScalarImage)
        assert np.array_equal(first[name].data[0], channel.astype(np.float32))


def test_a_voxel_lies_where_it_lies_in_the_file(data: BratsDataModule, phantom: Path) -> None:
    first = data.subjects("train")[0]
    name = first["name"]
    file = tio.LabelMap(phantom / name / f"{name}_seg.nii.gz")
    corner = [low for low, _ in data.cases[name].geometry.box]
    assert np.allclose(first["t1"].affine @ [0, 0, 0, 1], file.affine @ [*corner, 1])
    back = tio.Resample(file)(first)["label"]
    assert torch.equal(back.data > 0, file.data > 0)


def test_a_case_has_the_modalities_that_training_shows_of_it(phantom: Path) -> None:
    class NoT1(Uniform15):
        def has(self, case: str, available: Any) -> Subset:
            return parse_subset("t1c+t2+flair")

    module = BratsDataModule(phantom, availability=NoT1())
    module.setup("fit")
    assert "t1" not in module.subjects("train").dry_iter()[0]
    assert "t1" in module.subjects("val").dry_iter()[0]


def test_grid_and_aggregator_give_the_volume_back(data: BratsDataModule) -> None:
    first = data.subjects("val")[0]
    sampler = tio.GridSampler(first, 16, 4)
    aggregator = tio.GridAggregator(sampler)
    for patch in tio.SubjectsLoader(sampler, batch_size=4):
        aggregator.add_batch(patch["t1c"]["data"], patch[tio.LOCATION])
    assert torch.equal(aggregator.get_output_tensor(), first["t1c"].data)


def test_a_queue_of_subjects_trains_a_network(data: BratsDataModule) -> None:
    subjects = data.subjects("train")
    subjects.set_transform(tio.Compose([tio.RandomNoise(), DropModalities(Uniform15())]))
    queue = tio.Queue(subjects, 4, 2, tio.UniformSampler(16), num_workers=0)
    loader = DataLoader(queue, batch_size=2, collate_fn=as_batch)
    task = config.build(config.load(["a2fseg", "smoke"]).task)
    seen: list[dict[str, Any]] = []
    step = task.training_step

    def watched(batch: dict[str, Any], batch_idx: int) -> Any:
        seen.append(batch)
        return step(batch, batch_idx)

    task.training_step = watched
    trainer = Trainer(
        accelerator="cpu",
        max_steps=2,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    before = [p.clone() for p in task.parameters()]
    trainer.fit(task, loader, data.val_dataloader())
    assert trainer.global_step == 2
    assert any(not torch.equal(a, b) for a, b in zip(before, task.parameters(), strict=True))
    for batch in seen:
        assert batch["image"].shape == (2, 4, 16, 16, 16)
        empty = batch["image"].flatten(2).eq(0).all(dim=2)
        assert torch.equal(empty, ~batch["present"])


@pytest.mark.parametrize("policy", [Uniform15(), SizeUniform(), Bernoulli(0.7)])
def test_modalities_are_dropped_as_often_as_the_policy_says(policy: Availability) -> None:
    torch.manual_seed(0)
    drop, given, draws = DropModalities(policy, copy=False), subject(), 1500
    seen: Counter[Subset] = Counter()
    for _ in range(draws):
        given["present"] = torch.ones(4, dtype=torch.bool)
        t1, t1c, t2, flair = drop(given)["present"].tolist()
        seen[t1, t1c, t2, flair] += 1
    weights = np.array(policy.weights(0))
    expected = draws * weights / weights.sum()
    assert chisquare([seen[subset] for subset in SUBSETS], expected).pvalue > 0.01


def test_what_is_dropped_is_zero_flagged_and_in_the_history_and_the_label_stays() -> None:
    torch.manual_seed(3)
    before = subject()
    after = tio.Compose([tio.RandomFlip(), DropModalities(Uniform15())])(before)
    flags = after["present"].tolist()
    assert flags != [True] * 4
    for name, flag in zip(MODALITIES, flags, strict=True):
        assert bool(after[name].data.any()) == flag
        assert before[name].data.all()
    assert after["label"].data.all()
    replayed = after.get_composed_history()(before)
    assert replayed["present"].tolist() == flags
    assert after.history[-1].modalities == [
        name for name, flag in zip(MODALITIES, flags, strict=True) if not flag
    ]


def test_what_is_absent_or_excluded_is_not_drawn() -> None:
    torch.manual_seed(0)
    given = subject()
    given.remove_image("t2")
    drop = DropModalities(Uniform15(), exclude=["t1c"])
    for _ in range(20):
        t1, t1c, t2, flair = drop(given)["present"].tolist()
        assert t1c
        assert not t2
        assert t1 or flair


def test_a_policy_that_alternates_is_told_the_epoch() -> None:
    class Second(Uniform15):
        def weights(self, epoch: int) -> tuple[float, ...]:
            return tuple(float(subset == SUBSETS[epoch]) for subset in SUBSETS)

    drop = DropModalities(Second())
    drop.epoch = 1
    assert drop(subject())["present"].tolist() == list(SUBSETS[1])
