"""Patches: what a sample is, and how batches of them are delivered."""

import os
import resource
import threading
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bts_lightning.availability import EpochAlternate, Uniform15
from bts_lightning.data.patches import Batch, PatchLoader, whole_steps
from bts_lightning.data.samples import PatchDataset
from bts_lightning.errors import ConfigError, DataError
from bts_lightning.modalities import COMPLETE, Subset, parse_subset


@dataclass(frozen=True)
class FileCase:
    """A case on disk, as the cache has it."""

    folder: Path
    name: str
    available: Subset = COMPLETE
    labelled: bool = True
    origin: tuple[int, int, int] = (0, 0, 0)

    @property
    def image(self) -> np.ndarray:
        return np.load(self.folder / f"{self.name}.npy", mmap_mode="r")

    @property
    def label(self) -> np.ndarray | None:
        return (
            np.load(self.folder / f"{self.name}-seg.npy", mmap_mode="r") if self.labelled else None
        )

    @property
    def foreground(self) -> np.ndarray:
        label = self.label
        rows = [[int(label[tuple(at)]), *at] for at in np.argwhere(label)]
        return np.array(sorted(rows), np.int16).reshape(-1, 4)


def write_case(
    folder: Path,
    name: str,
    size: tuple[int, int, int] = (14, 16, 12),
    available: Subset = COMPLETE,
    tumour: tuple[int, int, int] = (3, 3, 3),
) -> FileCase:
    # Each voxel says where it is, so a test can tell where a patch comes from.
    where = np.arange(1, np.prod(size) + 1, dtype=np.float32).reshape(size) / 4096
    image = np.stack([where + 4 * channel for channel in range(4)]).astype(np.float16)
    image[~np.array(available)] = np.nan
    label = np.zeros(size, np.uint8)
    label[tumour] = 3
    np.save(folder / f"{name}.npy", image)
    np.save(folder / f"{name}-seg.npy", label)
    return FileCase(folder, name, available)


@pytest.fixture
def cases(tmp_path: Path) -> list[FileCase]:
    return [write_case(tmp_path, f"case{i}") for i in range(6)]


def sample(patches: PatchDataset, epoch: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    image = np.full((4, *patches.patch), 7, np.float16)
    label = np.full(patches.patch, 7, np.uint8)
    patches.draw(epoch, index).fill(image, label)
    return image, label


def same(one: Batch, other: Batch) -> bool:
    return all(
        torch.equal(one[key], other[key])
        if isinstance(one[key], torch.Tensor)
        else one[key] == other[key]
        for key in one
    )


# --- what a sample is ---


def test_a_patch_is_a_crop_of_its_case(cases: list[FileCase]) -> None:
    patches = PatchDataset(cases[:1], patch=(8, 6, 4), flip=0)
    image, label = sample(patches, 0, 0)
    windows = np.lib.stride_tricks.sliding_window_view(cases[0].image, (4, 8, 6, 4)).reshape(
        -1, 4, 8, 6, 4
    )
    at = [i for i, window in enumerate(windows) if np.array_equal(window, image)]
    assert len(at) == 1
    labels = np.lib.stride_tricks.sliding_window_view(cases[0].label, (8, 6, 4)).reshape(
        -1, 8, 6, 4
    )
    assert np.array_equal(labels[at[0]], label)


def test_a_batch_says_where_in_the_files_its_patches_lie(cases: list[FileCase]) -> None:
    case = replace(cases[0], origin=(5, 0, 2))
    patches = PatchDataset([case], patch=(8, 6, 4), samples=6)
    batch = PatchLoader(patches, batch_size=6, workers=0).batch(0, 0)
    for image, place in zip(batch["image"].numpy(), batch["place"].tolist(), strict=True):
        where = [
            first - origin + step * np.arange(n)
            for (first, step), origin, n in zip(place, case.origin, patches.patch, strict=True)
        ]
        np.testing.assert_array_equal(image, case.image[(slice(None), *np.ix_(*where))])
    assert set(batch["place"][..., 1].unique().tolist()) == {-1, 1}


def test_every_position_is_reached(cases: list[FileCase]) -> None:
    patches = PatchDataset(cases[:1], patch=(13, 15, 12), flip=0)
    corners = {float(sample(patches, 0, index)[0][0, 0, 0, 0]) for index in range(60)}
    assert len(corners) == 4


def test_image_and_label_are_mirrored_together(tmp_path: Path) -> None:
    case = write_case(tmp_path, "a", size=(8, 8, 8), tumour=(1, 2, 3))
    patches = PatchDataset([case], patch=8, flip=1)
    image, label = sample(patches, 0, 0)
    assert np.array_equal(image, case.image[:, ::-1, ::-1, ::-1])
    assert label[6, 5, 4] == 3


def test_each_axis_is_mirrored_by_itself(tmp_path: Path) -> None:
    case = write_case(tmp_path, "a", size=(4, 4, 4))
    patches = PatchDataset([case], patch=4, flip=0.5)
    corners = Counter(float(sample(patches, 0, index)[0][0, 0, 0, 0]) for index in range(200))
    assert len(corners) == 8
    assert min(corners.values()) > 10


def test_a_small_volume_sits_in_the_middle_of_zeros(tmp_path: Path) -> None:
    case = write_case(tmp_path, "a", size=(4, 10, 5))
    patches = PatchDataset([case], patch=(8, 6, 8), flip=1)
    image, label = sample(patches, 0, 0)
    inside = np.zeros((8, 6, 8), bool)
    inside[2:6, :, 2:7] = True  # the odd voxel of the rim is in front, mirrored
    assert (image[:, inside] > 0).all()
    assert (image[:, ~inside] == 0).all()
    assert set(np.unique(label)) <= {0, 3}


def test_an_absent_modality_is_zero_and_never_read(tmp_path: Path) -> None:
    case = write_case(tmp_path, "a", available=parse_subset("t1c+flair"))
    image, _ = sample(PatchDataset([case], patch=8), 0, 0)
    assert (image[[0, 2]] == 0).all()
    assert (image[[1, 3]] > 0).all()


def test_a_dropped_modality_keeps_its_image(cases: list[FileCase]) -> None:
    # Some networks learn from the modalities that the prediction may not see.
    loader = PatchLoader(PatchDataset(cases, patch=8, availability=Uniform15()), workers=0)
    for batch in loader:
        assert batch["available"].all()
        assert (batch["image"] > 0).all()


def test_foreground_patches_hold_tumour(tmp_path: Path) -> None:
    case = write_case(tmp_path, "a", size=(40, 40, 40), tumour=(39, 0, 20))
    always = PatchDataset([case], patch=8, foreground=1)
    assert all(sample(always, 0, index)[1].any() for index in range(20))
    never = PatchDataset([case], patch=8, foreground=0)
    assert sum(sample(never, 0, index)[1].any() for index in range(50)) < 5


def test_foreground_draws_the_class_before_the_voxel(tmp_path: Path) -> None:
    case = write_case(tmp_path, "a", size=(40, 40, 40), tumour=(4, 4, 4))
    label = np.array(case.label)
    label[30:, 30:, 30:] = 2  # 1000 voxels against one of class 3
    np.save(tmp_path / "a-seg.npy", label)
    patches = PatchDataset([case], patch=8, foreground=1)
    small = sum((sample(patches, 0, index)[1] == 3).any() for index in range(100))
    assert 30 < small < 70


def test_a_case_without_tumour_gives_uniform_patches(tmp_path: Path) -> None:
    case = write_case(tmp_path, "a")
    np.save(tmp_path / "a-seg.npy", np.zeros((14, 16, 12), np.uint8))
    image, label = sample(PatchDataset([case], patch=8, foreground=1), 0, 0)
    assert (image > 0).all()
    assert not label.any()


def test_a_sample_depends_on_seed_epoch_and_index_alone(cases: list[FileCase]) -> None:
    patches = PatchDataset(cases, patch=8, foreground=0.5)
    first = sample(patches, 2, 3)[0]
    sample(patches, 0, 0)
    assert np.array_equal(first, sample(patches, 2, 3)[0])
    assert np.array_equal(
        first, sample(PatchDataset(cases[::-1], patch=8, foreground=0.5), 2, 3)[0]
    )
    others = [(1, 3), (2, 2)]
    assert not any(np.array_equal(first, sample(patches, *other)[0]) for other in others)
    assert not np.array_equal(first, sample(PatchDataset(cases, patch=8, seed=1), 2, 3)[0])


def test_each_case_comes_once_a_round_in_changing_order(cases: list[FileCase]) -> None:
    patches = PatchDataset(cases, patch=8)
    orders = [[patches.case_of(epoch, i).name for i in range(6)] for epoch in range(3)]
    assert all(len(set(order)) == 6 for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_rounds_run_on_across_epochs_of_any_length(cases: list[FileCase]) -> None:
    patches = PatchDataset(cases, patch=8, samples=4)
    seen = Counter(patches.case_of(epoch, i).name for epoch in range(3) for i in range(4))
    assert set(seen.values()) == {2}


@pytest.mark.parametrize("patch", [0, [8, 8], [8, 8, -1]])
def test_an_impossible_patch_is_refused(cases: list[FileCase], patch: int | list[int]) -> None:
    with pytest.raises(ConfigError, match="give one edge length"):
        PatchDataset(cases, patch=patch)


def test_an_impossible_probability_is_refused(cases: list[FileCase]) -> None:
    with pytest.raises(ValueError, match=r"foreground is 1\.5"):
        PatchDataset(cases, foreground=1.5)


def test_no_cases_at_all_is_refused() -> None:
    with pytest.raises(DataError, match="no case to train on"):
        PatchDataset([])


# --- how they are delivered ---


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_any_number_of_workers_gives_the_same_batches(
    cases: list[FileCase], workers: int, batch_size: int
) -> None:
    patches = PatchDataset(cases, patch=8, foreground=0.3, samples=12, availability=Uniform15())
    alone = list(PatchLoader(patches, batch_size=batch_size, workers=0))
    threaded = list(PatchLoader(patches, batch_size=batch_size, workers=workers))
    assert len(alone) == len(threaded) == 12 // batch_size
    assert all(same(one, other) for one, other in zip(alone, threaded, strict=True))


def test_a_batch_has_the_promised_parts(cases: list[FileCase]) -> None:
    batch = next(iter(PatchLoader(PatchDataset(cases, patch=8), batch_size=2)))
    assert batch["image"].shape == (2, 4, 8, 8, 8)
    assert batch["image"].dtype == torch.float16
    assert batch["label"].shape == (2, 8, 8, 8)
    assert batch["label"].dtype == torch.uint8
    assert batch["present"].shape == batch["available"].shape == (2, 4)
    assert batch["present"].dtype == batch["available"].dtype == torch.bool
    assert len(batch["case"]) == len(batch["seed"]) == 2


def test_two_ranks_together_are_one_process_with_twice_the_batch(cases: list[FileCase]) -> None:
    patches = PatchDataset(cases, patch=8, samples=12, availability=Uniform15())
    ranks = [PatchLoader(patches, batch_size=2, rank=rank, world=2) for rank in range(2)]
    for whole, left, right in zip(PatchLoader(patches, batch_size=4), *ranks, strict=True):
        assert torch.equal(whole["image"], torch.cat([left["image"], right["image"]]))
        assert torch.equal(whole["present"], torch.cat([left["present"], right["present"]]))
        assert whole["seed"] == left["seed"] + right["seed"]


def test_an_epoch_of_three_ranks_has_each_case_once(cases: list[FileCase]) -> None:
    patches = PatchDataset(cases, patch=8)
    loaders = [PatchLoader(patches, batch_size=2, rank=rank, world=3) for rank in range(3)]
    names = [name for loader in loaders for batch in loader for name in batch["case"]]
    assert sorted(names) == sorted(case.name for case in cases)


def test_an_epoch_that_is_no_whole_number_of_steps_is_refused(cases: list[FileCase]) -> None:
    with pytest.raises(ValueError, match="8 would be"):
        PatchLoader(PatchDataset(cases, patch=8), batch_size=2, world=2)
    assert whole_steps(6, 4) == 8


def test_epochs_differ_and_reach_the_availability(cases: list[FileCase]) -> None:
    patches = PatchDataset(cases, patch=8, availability=EpochAlternate())
    loader = PatchLoader(patches, batch_size=6)
    loader.sampler.set_epoch(0)
    (even,) = loader
    loader.sampler.set_epoch(1)
    (odd,) = loader
    assert not even["present"].all(dim=1).any()
    assert odd["present"].all()
    assert not torch.equal(even["image"], odd["image"])


def test_the_epoch_may_be_told_after_the_iterator_was_made(cases: list[FileCase]) -> None:
    # Lightning does so.
    loader = PatchLoader(PatchDataset(cases, patch=8))
    iterator = iter(loader)
    loader.sampler.set_epoch(5)
    late = next(iterator)
    assert same(late, loader.batch(5, 0))


def test_a_frozen_loader_repeats_the_first_epoch(cases: list[FileCase]) -> None:
    loader = PatchLoader(PatchDataset(cases, patch=8), frozen=True)
    first = next(iter(loader))
    loader.sampler.set_epoch(3)
    assert same(first, next(iter(loader)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_restored_loader_goes_on_with_the_next_batch(cases: list[FileCase], workers: int) -> None:
    patches = PatchDataset(cases, patch=8)
    loader = PatchLoader(patches, workers=workers)
    loader.sampler.set_epoch(4)
    iterator = iter(loader)
    for _ in range(2):
        next(iterator)
    state = loader.state_dict()
    rest = list(iterator)

    restored = PatchLoader(patches, workers=workers)
    restored.load_state_dict(state)
    iterator = iter(restored)
    restored.sampler.set_epoch(4)
    again = list(iterator)
    assert len(again) == len(rest) == 4
    assert all(same(one, other) for one, other in zip(rest, again, strict=True))
    assert restored.state_dict() == loader.state_dict()
    restored.sampler.set_epoch(5)
    assert len(list(restored)) == 6


def test_a_batch_in_flight_is_not_counted_as_done(cases: list[FileCase]) -> None:
    done = 0
    loader = PatchLoader(PatchDataset(cases, patch=8), finished=lambda: done)
    iterator = iter(loader)
    next(iterator)
    assert loader.state_dict()["batch"] == 0
    done = 1
    assert loader.state_dict()["batch"] == 1
    iterator.close()  # type: ignore[attr-defined]


def test_another_batch_size_cannot_go_on_in_mid_epoch(cases: list[FileCase]) -> None:
    patches = PatchDataset(cases, patch=8)
    loader = PatchLoader(patches)
    next(iter(loader))
    with pytest.raises(ConfigError, match="keep batch size"):
        PatchLoader(patches, batch_size=2).load_state_dict(loader.state_dict())


@pytest.mark.parametrize("workers", [0, 3])
def test_an_unreadable_case_is_named(cases: list[FileCase], workers: int) -> None:
    file = cases[2].folder / "case2.npy"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DataError, match="case case2: its cached volume cannot be read"):
        list(PatchLoader(PatchDataset(cases, patch=8), workers=workers))


def test_a_case_without_label_is_named(tmp_path: Path) -> None:
    write_case(tmp_path, "a")
    with pytest.raises(DataError, match="case a has no label map"):
        list(PatchLoader(PatchDataset([FileCase(tmp_path, "a", labelled=False)], patch=8)))


def test_cases_are_opened_by_the_thread_that_asks_for_batches(cases: list[FileCase]) -> None:
    # Python 3.11 fails now and then when two threads parse at once, and np.load parses.
    openers = set()

    @dataclass(frozen=True)
    class Watched(FileCase):
        @property
        def image(self) -> np.ndarray:
            openers.add(threading.get_ident())
            return super().image

    watched = [Watched(case.folder, case.name) for case in cases]
    list(PatchLoader(PatchDataset(watched, patch=8), workers=3))
    assert openers == {threading.get_ident()}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts the handles as Linux does")
def test_files_are_closed_with_the_data_set(cases: list[FileCase]) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    patches = PatchDataset(cases, patch=8)
    list(PatchLoader(patches))
    del patches
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_more_cases_than_file_handles_can_be_read(tmp_path: Path) -> None:
    cases = [write_case(tmp_path, f"case{i}", size=(4, 4, 4)) for i in range(80)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as others:
        for _ in range(300):  # what else a long-lived process has open must count too
            others.enter_context(Path(os.devnull).open("rb"))
        open_now = len(list(Path("/dev/fd").iterdir()))
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 100, hard))
        others.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        names = [batch["case"][0] for batch in PatchLoader(PatchDataset(cases, patch=4))]
    assert len(set(names)) == 80


def test_an_abandoned_epoch_leaves_no_thread(cases: list[FileCase]) -> None:
    before = threading.active_count()
    iterator = iter(PatchLoader(PatchDataset(cases, patch=8), workers=3))
    next(iterator)
    assert threading.active_count() > before
    del iterator
    assert threading.active_count() == before


def test_a_finished_epoch_leaves_no_thread(cases: list[FileCase]) -> None:
    before = threading.active_count()
    list(PatchLoader(PatchDataset(cases, patch=8), workers=3))
    assert threading.active_count() == before


def test_a_batch_that_somebody_holds_is_never_written_again(cases: list[FileCase]) -> None:
    loader = PatchLoader(PatchDataset(cases, patch=8, samples=30), workers=2)
    held, copies, addresses = [], [], set()
    for number, batch in enumerate(loader):
        addresses.add(batch["image"].data_ptr())
        if number % 3 == 0:
            # A part of a tensor, as NumPy sees it, holds the whole.
            held.append(batch["image"][0, 1].numpy())
            copies.append(held[-1].copy())
    assert len(addresses) < 20  # others are used again
    assert all(np.array_equal(one, other) for one, other in zip(held, copies, strict=True))


def test_reading_leaves_the_global_generators_alone(cases: list[FileCase]) -> None:
    torch.manual_seed(0)
    np_state, state = np.random.get_state()[1].tolist(), torch.get_rng_state()
    list(PatchLoader(PatchDataset(cases, patch=8, availability=Uniform15()), workers=2))
    assert torch.equal(state, torch.get_rng_state())
    assert np_state == np.random.get_state()[1].tolist()


@pytest.mark.parametrize("edge", [15, 16, 17])
def test_what_lies_beyond_a_volume_is_background_whatever_the_memory_held(
    tmp_path: Path, edge: int
) -> None:
    """One voxel too few has its missing plane at the end, where no corner is negative."""
    case = write_case(tmp_path, "a", size=(15, 16, 17))
    sample = PatchDataset([case], patch=edge, flip=0.0).draw(0, 0)
    image = np.full((4, edge, edge, edge), np.nan, np.float16)
    label = np.full((edge, edge, edge), 99, np.uint8)
    sample.fill(image, label)
    assert np.isfinite(image).all()
    assert label.max() <= 3
