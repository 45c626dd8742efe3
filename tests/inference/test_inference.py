"""Sliding windows: encode once and decode for every subset, and what it must equal."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bts_lightning.errors import ConfigError, UserError
from bts_lightning.inference import Clock, Protocol, label_map, segment, sliding
from bts_lightning.inference.windows import axis_starts, importance
from bts_lightning.losses import LabelLoss, RegionLoss
from bts_lightning.modalities import SUBSETS, parse_subset, subsets_within
from bts_lightning.networks.backbone import Features, Output
from bts_lightning.networks.hemis import UHeMIS
from tests.inference.parts import ALL, Blur, Forgetful, Sharing, averaged_over, case, make


def test_one_pass_gives_what_naive_passes_give() -> None:
    net, loss, image = make(), RegionLoss(), case(13, 18, 12)
    once = segment(net, loss, image, ALL, Protocol(window=8))
    windows = net.encoded
    naive = segment(net, loss, image, ALL, Protocol(window=8, naive=True))
    assert net.encoded == windows * (1 + 15)
    assert once.shape == (15, 13, 18, 12)
    assert len(np.unique(once)) == 4
    np.testing.assert_array_equal(once, naive)


@pytest.mark.parametrize("batches", [{"batch_subsets": 4}, {"batch_windows": 3}])
def test_batches_change_nothing_but_rounding(batches: dict[str, int]) -> None:
    net, loss, image = make(), RegionLoss(), case(13, 18, 12)
    one = segment(net, loss, image, ALL, Protocol(window=8))
    many = segment(net, loss, image, ALL, Protocol(window=8, **batches))
    assert (one != many).mean() < 1e-4


def test_real_network_with_label_loss() -> None:
    torch.manual_seed(0)
    net, loss, image = UHeMIS(width=4), LabelLoss(), case(20, 16, 16)
    subsets = [parse_subset("t1c"), parse_subset("t1+flair"), ALL]
    once = segment(net, loss, image, ALL, Protocol(window=16), subsets)
    naive = segment(net, loss, image, ALL, Protocol(window=16, naive=True), subsets)
    np.testing.assert_array_equal(once, naive)


@pytest.mark.parametrize("weighting", ["gaussian", "constant"])
def test_network_without_context_does_not_see_the_windows(weighting: str) -> None:
    net, loss, image = make(kernel=1).eval(), RegionLoss(), case(13, 11, 9)
    protocol = Protocol(window=8, overlap=0.6, weighting=weighting)
    with torch.no_grad():
        logits = net.decode(
            Features(
                net.encode_levels(torch.from_numpy(image).float()[None], torch.tensor([ALL])),
                (torch.tensor([ALL]),),
                torch.tensor([ALL]),
            )
        ).logits
    averaged = averaged_over(net, loss, image, protocol, ALL)
    np.testing.assert_allclose(averaged, loss.probabilities(logits)[0].numpy(), atol=1e-6)


def test_labels_are_those_of_the_averaged_probabilities() -> None:
    net, loss, image = make(), RegionLoss(), case(12, 12, 12)
    averaged = averaged_over(net, loss, image, Protocol(window=8), ALL)
    labels = segment(net, loss, image, ALL, Protocol(window=8), [ALL])
    expected = loss.labels(torch.from_numpy(averaged)[None])
    np.testing.assert_array_equal(labels, expected.numpy())


def test_constant_windows_average_evenly_where_two_overlap() -> None:
    class Ramp(Blur):
        def decode(self, features: Features) -> Output:
            # The first plane of every window is 0, the last log(7 / 1).
            ramp = torch.linspace(0, math.log(7), 8).view(1, 1, 8, 1, 1)
            return Output(ramp.expand(len(features.real), 3, 8, 8, 8))

    protocol = Protocol(window=8, weighting="constant")
    averaged = averaged_over(make(Ramp), RegionLoss(), case(12, 8, 8), protocol, ALL)[0, :, 0, 0]
    alone = torch.linspace(0, math.log(7), 8).sigmoid().numpy()
    np.testing.assert_allclose(averaged[:4], alone[:4], atol=1e-6)
    np.testing.assert_allclose(averaged[4:8], (alone[4:] + alone[:4]) / 2, atol=1e-6)
    np.testing.assert_allclose(averaged[8:], alone[4:], atol=1e-6)


def test_volume_smaller_than_the_window_is_padded_with_background() -> None:
    net, loss, image = make(), RegionLoss(), case(5, 8, 6)
    padded = np.zeros((4, 8, 8, 8), np.float16)
    padded[:, 1:6, :, 1:7] = image
    small = segment(net, loss, image, ALL, Protocol(window=8), [ALL])
    np.testing.assert_array_equal(
        small[0], segment(net, loss, padded, ALL, Protocol(window=8), [ALL])[0, 1:6, :, 1:7]
    )


def test_window_shrinks_to_a_small_volume_on_request() -> None:
    net, image = make(), case(6, 9, 4)
    shrunk = Protocol(window=16, shrink_window=True, skip_empty=False)
    exact = Protocol(window=[8, 12, 4])
    np.testing.assert_array_equal(
        segment(net, RegionLoss(), image, ALL, shrunk),
        segment(net, RegionLoss(), image, ALL, exact),
    )


@pytest.mark.parametrize("naive", [False, True])
def test_absent_modalities_may_contain_nan(naive: bool) -> None:
    net, loss, image = make(), RegionLoss(), case(12, 8, 8)
    available = (True, False, True, False)
    subsets = subsets_within(available)
    spoilt = image.copy()
    spoilt[1], spoilt[3] = np.nan, np.inf
    np.testing.assert_array_equal(
        segment(net, loss, image, available, Protocol(window=8, naive=naive), subsets),
        segment(net, loss, spoilt, available, Protocol(window=8, naive=naive), subsets),
    )


def test_a_modality_outside_the_subset_changes_nothing() -> None:
    # Not even which windows are looked at: this one shows something where T1 is empty.
    net, loss, image = make(), RegionLoss(), case(24, 8, 8)
    image[0, 12:] = 0
    other = image.copy()
    other[1:, 8:] = 0
    t1 = [parse_subset("t1")]
    np.testing.assert_array_equal(
        segment(net, loss, image, ALL, Protocol(window=8), t1),
        segment(net, loss, other, ALL, Protocol(window=8), t1),
    )


def test_windows_without_brain_are_left_out() -> None:
    net, image = make(), case(40, 8, 8)
    image[:, 8:32] = 0
    labels = segment(net, RegionLoss(), image, ALL, Protocol(window=8, overlap=0))
    assert net.encoded == 2
    assert not labels[:, 8:32].any()
    segment(net, RegionLoss(), image, ALL, Protocol(window=8, overlap=0, skip_empty=False))
    assert net.encoded == 2 + 5


def test_case_without_any_brain_is_background() -> None:
    image = np.zeros((4, 8, 8, 8), np.float16)
    for loss, channels in ((RegionLoss(), 3), (LabelLoss(), 4)):
        assert not segment(make(channels=channels), loss, image, ALL, Protocol(window=8)).any()


def test_mirrored_views_make_mirrored_volumes_agree() -> None:
    net, loss, image = make(), RegionLoss(), case(12, 8, 8)
    protocol = Protocol(window=8, mirror=True)
    straight = averaged_over(net, loss, image, protocol, ALL)
    mirrored = averaged_over(net, loss, image[:, ::-1, :, ::-1], protocol, ALL)
    np.testing.assert_allclose(straight, mirrored[:, ::-1, :, ::-1], atol=1e-6)
    plain = averaged_over(net, loss, image, Protocol(window=8), ALL)
    assert abs(plain - straight).max() > 1e-3


def test_half_precision_network_stays_near() -> None:
    net, loss, image = make(), RegionLoss(), case(8, 8, 8)
    full = averaged_over(net, loss, image, Protocol(window=8), ALL)
    half = averaged_over(net, loss, image, Protocol(window=8, precision="bf16"), ALL)
    assert half.dtype == np.float32
    assert 0 < abs(full - half).max() < 0.05


@pytest.mark.parametrize(
    ("shares", "windows", "most"), [(False, 1, 1), (True, 1, 15), (True, 2, 2), (False, 2, 2)]
)
def test_a_cpu_decodes_subsets_together_only_where_that_shares_work(
    shares: bool, windows: int, most: int
) -> None:
    net, rows = make(Sharing if shares else Blur), []
    net.head.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    segment(net, RegionLoss(), case(12, 8, 8), ALL, Protocol(window=8, batch_windows=windows))
    assert max(rows) == most


def test_memory_running_out_halves_the_batch() -> None:
    net, loss, image = make(Forgetful), RegionLoss(), case(8, 8, 8)
    expected = segment(make(), loss, image, ALL, Protocol(window=8, batch_subsets=1))
    labels = segment(net, loss, image, ALL, Protocol(window=8, batch_subsets=15))
    assert net.decoded == 15
    assert (labels != expected).mean() < 1e-4


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("none at all"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),  # of a CPU; it has no class
    ],
)
def test_window_that_never_fits_is_a_clear_error(error: RuntimeError) -> None:
    class Hungry(Blur):
        def encode_levels(self, image: Tensor, present: Tensor) -> tuple[Tensor, ...]:
            raise error

    with pytest.raises(UserError, match=r"does not fit into the memory of cpu.*smaller"):
        segment(make(Hungry), RegionLoss(), case(8, 8, 8), ALL, Protocol(window=8))


def test_memory_given_back_between_subsets_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    net, loss, image = make(), RegionLoss(), case(12, 8, 8)
    expected = segment(net, loss, image, ALL, Protocol(window=8))
    given_back: list[bool] = []
    real = sliding.give_back_freed_memory
    monkeypatch.setattr(sliding, "LARGE_FEATURES", 1)
    monkeypatch.setattr(
        sliding, "give_back_freed_memory", lambda: given_back.append(real() is None)
    )
    np.testing.assert_array_equal(segment(net, loss, image, ALL, Protocol(window=8)), expected)
    assert len(given_back) == 2 * 15


def test_another_failure_is_not_taken_for_lack_of_memory() -> None:
    class Broken(Blur):
        def encode_levels(self, image: Tensor, present: Tensor) -> tuple[Tensor, ...]:
            raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        segment(make(Broken), RegionLoss(), case(8, 8, 8), ALL, Protocol(window=8))


def test_training_flags_come_back_even_after_an_error() -> None:
    net, loss = make(), RegionLoss()
    net.train()
    net.own[2].eval()
    segment(net, loss, case(8, 8, 8), ALL, Protocol(window=8), [ALL])
    with pytest.raises(ConfigError):
        segment(net, loss, case(8, 8, 8), ALL, Protocol(window=7), [ALL])
    assert net.training
    assert net.head.training
    assert not net.own[2].training


def test_memory_map_is_read_without_a_warning(tmp_path: Path) -> None:
    image = case(12, 8, 8)
    np.save(tmp_path / "image.npy", image)
    mapped = np.load(tmp_path / "image.npy", mmap_mode="r")
    net, loss = make(), RegionLoss()
    np.testing.assert_array_equal(
        segment(net, loss, mapped, ALL, Protocol(window=8)),
        segment(net, loss, image, ALL, Protocol(window=8)),
    )


def test_subsets_default_to_what_the_case_can_show() -> None:
    net, loss, image = make(), RegionLoss(), case(8, 8, 8)
    available = (True, True, False, False)
    assert len(segment(net, loss, image, available, Protocol(window=8))) == 3
    some = Protocol(window=8, subsets=["t1c", "flair"])
    assert len(segment(net, loss, image, available, some)) == 1
    assert segment(net, loss, image, (False, False, True, False), some).shape == (0, 8, 8, 8)


def test_subset_that_the_case_cannot_show_is_refused() -> None:
    with pytest.raises(ValueError, match=r"only t1\+t1c.*flair"):
        segment(
            make(),
            RegionLoss(),
            case(8, 8, 8),
            (True, True, False, False),
            Protocol(window=8),
            [parse_subset("flair")],
        )


def test_window_the_network_refuses_names_one_that_would_do() -> None:
    with pytest.raises(ConfigError, match=r"window.*multiples of 4.*\(12, 12, 12\)"):
        segment(make(), RegionLoss(), case(8, 8, 8), ALL, Protocol(window=10))


def test_clock_tells_the_stages_apart() -> None:
    clock = Clock()
    segment(make(), RegionLoss(), case(8, 8, 8), ALL, Protocol(window=8), clock=clock)
    assert list(clock.seconds) == ["read", "encode", "decode", "accumulate", "label"]
    assert min(clock.seconds.values()) > 0


@pytest.mark.parametrize(
    ("length", "window", "overlap", "expected"),
    [
        (8, 8, 0.5, [0]),
        (9, 8, 0.5, [0, 1]),
        (16, 8, 0.5, [0, 4, 8]),
        (16, 8, 0.0, [0, 8]),
        (18, 8, 0.5, [0, 3, 7, 10]),
        (155, 128, 0.5, [0, 27]),
        (240, 128, 0.5, [0, 56, 112]),
    ],
)
def test_windows_lie_evenly(length: int, window: int, overlap: float, expected: list[int]) -> None:
    assert axis_starts(length, window, overlap) == expected


@pytest.mark.parametrize(
    ("length", "expected"),
    [(8, [0]), (9, [0, 1]), (16, [0, 4, 8]), (18, [0, 4, 8, 10]), (23, [0, 4, 8, 12, 15])],
)
def test_stepped_windows_end_with_one_at_the_border(length: int, expected: list[int]) -> None:
    assert axis_starts(length, 8, 0.5, "stepped") == expected


def test_logits_of_overlapping_windows_are_averaged() -> None:
    net, image = make().eval(), case(12, 8, 8)
    by_logits = Protocol(window=8, weighting="constant", average="logits")
    with torch.no_grad():
        parts = [
            net(torch.from_numpy(image[None, :, a : a + 8]).float(), torch.tensor([ALL])).logits[0]
            for a in (0, 4)
        ]
    expected = ((parts[0][:, 4:] + parts[1][:, :4]) / 2).sigmoid()
    averaged = averaged_over(net, RegionLoss(), image, by_logits, ALL)
    np.testing.assert_allclose(averaged[:, 4:8], expected.numpy(), atol=1e-5)
    labels = segment(net, RegionLoss(), image, ALL, by_logits, [ALL])
    np.testing.assert_array_equal(labels, RegionLoss().labels(torch.from_numpy(averaged)[None]))


def test_where_nothing_was_shown_averaged_logits_say_nothing() -> None:
    image = case(24, 8, 8)
    image[:, 8:] = 0
    protocol = Protocol(window=8, overlap=0, average="logits")
    averaged = averaged_over(make().eval(), RegionLoss(), image, protocol, ALL)
    assert averaged[:, :8].all()
    assert not averaged[:, 8:].any()


@pytest.mark.parametrize(
    ("minimum", "small", "expected"),
    [(0, "erase", [3, 2]), (2, "erase", [3, 2]), (3, "erase", [0, 2]), (3, "relabel", [1, 2])],
)
def test_a_small_et_is_erased_or_relabelled(minimum: int, small: str, expected: list[int]) -> None:
    # Two voxels of ET and two of oedema.
    sure = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]).view(1, 3, 4, 1, 1).float()
    labels = label_map(RegionLoss(), sure, Protocol(et_minimum=minimum, et_small=small))
    assert labels.flatten().tolist() == [expected[0]] * 2 + [expected[1]] * 2


def test_gaussian_is_symmetric_with_the_deviation_of_an_eighth() -> None:
    weights = importance((16, 17, 8), "gaussian")
    torch.testing.assert_close(weights, weights.flip(0, 1, 2))
    line = weights[:, 8, 4]
    # Half a voxel and four and a half from the centre, deviation two voxels.
    assert float(line[12] / line[8]) == pytest.approx(math.exp(-(4.5**2 - 0.5**2) / 8))
    assert float(weights.min()) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 0}, "window=0"),
        ({"window": [64, 64]}, r"window=\[64, 64\]"),
        ({"overlap": 1.0}, "less than 1"),
        ({"overlap": -0.5}, "overlap=-0.5"),
        ({"weighting": "gauss"}, "gaussian, constant"),
        ({"precision": "fp16"}, "32, bf16, 16"),
        ({"hd95": "max"}, "pooled, directed"),
        ({"empty": "zero"}, "brats2023"),
        ({"subsets": []}, "empty"),
        ({"subsets": ["t1+t4"]}, "unknown modality 't4'"),
        ({"subsets": ["t1+t2", "t2+t1"]}, "twice"),
        ({"batch_windows": 0}, "batch_windows=0"),
        ({"batch_subsets": 0}, "batch_subsets=0"),
    ],
)
def test_protocol_refuses_what_cannot_be(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Protocol(**arguments)


def test_facts_hold_what_changes_numbers_and_not_how_work_is_batched() -> None:
    assert Protocol(window=64).facts() == Protocol(window=[64, 64, 64], batch_subsets=3).facts()
    assert Protocol().facts() != Protocol(overlap=0.25).facts()
    assert len(Protocol().facts()["subsets"]) == len(SUBSETS)
