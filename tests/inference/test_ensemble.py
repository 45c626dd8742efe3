"""Several networks together: the mean of what each says by itself."""

import time

import numpy as np
import pytest
import torch

from bts_lightning.inference import Protocol, each_subset
from bts_lightning.inference.ensemble import Member, View, each_of_all, shared_loss
from bts_lightning.losses import LabelLoss, RegionLoss, SegmentationLoss, SeparateLabelLoss
from bts_lightning.modalities import SUBSETS, parse_subset
from tests.inference.parts import ALL, Blur, averaged_over, case

BOX = ((0, 12), (0, 8), (0, 8))


def member(seed: int, loss: SegmentationLoss, **how: object) -> Member:
    torch.manual_seed(seed)
    return Member(Blur(loss.channels), loss, Protocol(**{"window": 8, **how}))  # type: ignore[arg-type]


def together(members: list[Member], *views: View, names: tuple[str, ...] = ("t1c+flair",)):
    subsets = [parse_subset(name) for name in names]
    return list(each_of_all(members, views, ALL, subsets))


def test_each_keeps_its_window_and_temperature_and_the_mean_is_exact() -> None:
    image = case(12, 8, 8)
    hows = [{"window": 8}, {"window": 4, "overlap": 0.25}, {"temperature": 2.0, "mirror": True}]
    members = [member(seed, RegionLoss(), **how) for seed, how in enumerate(hows)]
    own = [
        [averaged_over(m.net, m.loss, image, m.protocol, subset) for m in members]
        for subset in SUBSETS
    ]
    found = list(each_of_all(members, [View(image, BOX)] * 3, ALL, SUBSETS))
    assert len(found) == 15
    for (labels, mean), each in zip(found, own, strict=True):
        np.testing.assert_allclose(mean[0], np.mean(each, axis=0), rtol=0, atol=1e-6)
        np.testing.assert_array_equal(labels, RegionLoss().labels(mean)[0])


def test_one_alone_gives_what_it_gives() -> None:
    image, one = case(12, 8, 8), member(0, LabelLoss(), et_minimum=10**6, et_small="relabel")
    ((labels, mean),) = together([one], View(image, BOX))
    subset = [parse_subset("t1c+flair")]
    ((expected, averaged),) = each_subset(one.net, one.loss, image, ALL, one.protocol, subset)
    assert mean.equal(averaged)
    np.testing.assert_array_equal(labels, expected)
    assert (labels != 3).all()


def test_losses_of_two_kinds_meet_in_the_regions() -> None:
    image, losses = case(12, 8, 8), [RegionLoss(), LabelLoss(), SeparateLabelLoss()]
    members = [member(seed, loss) for seed, loss in enumerate(losses)]
    ((labels, mean),) = together(members, *[View(image, BOX)] * 3)
    shown = parse_subset("t1c+flair")
    each = [torch.tensor(averaged_over(m.net, m.loss, image, m.protocol, shown)) for m in members]
    regions = [loss.of_regions(p[None])[0] for loss, p in zip(losses, each, strict=True)]
    np.testing.assert_allclose(mean[0], torch.stack(regions).mean(dim=0), rtol=0, atol=1e-6)
    painted = np.select([mean[0, 2] > 0.5, mean[0, 1] > 0.5, mean[0, 0] > 0.5], [3, 1, 2])
    np.testing.assert_array_equal(labels, painted)
    # Weights of a loss change no reading.
    assert isinstance(shared_loss([LabelLoss(ce=2.0), LabelLoss()]), LabelLoss)


def test_what_another_box_does_not_show_says_nothing() -> None:
    whole = case(12, 8, 8)
    members = [member(0, RegionLoss()), member(1, RegionLoss(), window=4)]
    small = View(whole[:, 2:10, :4], ((2, 10), (0, 4), (0, 8)))
    ((_, mean),) = together(members, View(whole, BOX), small)
    ((_, one),) = together(members[:1], View(whole, BOX))
    ((_, two),) = together(members[1:], small)
    expected = one[0] / 2
    expected[:, 2:10, :4] += two[0] / 2
    np.testing.assert_allclose(mean[0], expected, rtol=0, atol=1e-6)
    # The other way round the result lies in the small box.
    ((_, mean),) = together(members[::-1], small, View(whole, BOX))
    np.testing.assert_allclose(mean[0], expected[:, 2:10, :4], rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [2, 3])
def test_the_image_is_read_only_as_often_as_there_are_networks(count: int) -> None:
    members = [member(seed, RegionLoss()) for seed in range(count)]
    together(members, *[View(case(8, 8, 8), ((0, 8),) * 3)] * count, names=("t1", "t2", "flair"))
    # Each window is encoded once by each, whatever the number of subsets.
    assert [m.net.encoded for m in members] == [1] * count  # type: ignore[attr-defined]


@pytest.mark.slow
def test_three_take_three_times_as_long_as_one() -> None:
    view = View(case(64, 64, 64), ((0, 64),) * 3)
    members = [
        Member(Blur(4, kernel=5), LabelLoss(), Protocol(window=32, overlap=0.25)) for _ in range(3)
    ]

    def seconds(count: int) -> float:
        start = time.process_time()
        list(each_of_all(members[:count], [view] * count, ALL, SUBSETS[:5]))
        return time.process_time() - start

    seconds(1)  # compiles
    rounds = [(seconds(1), seconds(3)) for _ in range(4)]
    one, three = (min(times) for times in zip(*rounds, strict=True))
    print(f"one {one:.2f} s, three {three:.2f} s, ratio {three / one:.3f}")
    assert three < 3.1 * one
