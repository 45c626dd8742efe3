import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bts_lightning.modalities import subset_name
from bts_lightning.networks.backbone import over
from bts_lightning.networks.flat_attention import FlatAttention, differences
from bts_lightning.networks.likeness import agreement, contrast, distance
from bts_lightning.networks.pyramid import to_maps
from bts_lightning.networks.repainting import damaged, repaired, similarity
from bts_lightning.networks.unimrseg import Surroundings, UniMRSeg, in_pairs
from tests.golden.fill_rule import noise
from tests.networks.conformity import FOLDER, fill_parameters, read, relative, statistics

ALL = torch.ones(1, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("options", "count"), [({}, 91_444_077), ({"stage": "contrast"}, 55_887_555)]
)
def test_full_width_has_the_official_number_of_weights(options: Any, count: int) -> None:
    with torch.device("meta"):
        net = UniMRSeg(**options)
    assert sum(p.numel() for p in net.parameters()) == count


@pytest.mark.slow
def test_wide_surroundings_are_the_official_ones() -> None:
    # The golden outputs have 8³ voxels here, where the two widest kernels meet data in one place.
    net = Surroundings(512).eval()
    fill_parameters(net)
    image = torch.from_numpy(noise(torch.arange(512 * 20**3).numpy() + 31)).float()
    with torch.no_grad():
        found = net(image.reshape(1, 512, 20, 20, 20))[0]
    expected = read(FOLDER / "parts" / "aspp_20.npz")
    assert relative(found[::32, ::3, ::3, ::3].numpy(), expected["unimrseg/out"]) < 1e-5
    assert statistics(found)[1:5] == pytest.approx(expected["unimrseg/stats"][1:5], rel=1e-5)


@pytest.mark.parametrize("aligned", [False, True])
def test_only_the_aligned_decoder_reads_the_border_of_the_deepest_level(aligned: bool) -> None:
    torch.manual_seed(0)
    net = UniMRSeg(width=2, aligned=aligned, stage="contrast").eval()
    net.up = net.up[:1]  # the others do not read it
    levels = [torch.randn(1, width, 8, 8, 8) for width in net.widths[-2:]]
    levels[-1].requires_grad_()
    (gradient,) = torch.autograd.grad(net.joined(levels).sum(), levels[-1])
    reached = (gradient[0] != 0).any(dim=0)
    # Enlarged to 16 with its corners in place, and cut from 4 to 11, which lies from 1.87 to 5.13.
    inside = range(8) if aligned else range(1, 7)
    for axis in range(3):
        rows = reached.movedim(axis, 0).flatten(1).any(dim=1)
        assert rows.tolist() == [k in inside for k in range(8)]


def test_a_place_in_a_square_knows_its_row_of_the_table() -> None:
    rows = differences()
    assert rows.shape == (49, 49)
    assert rows[0, 0] == rows[48, 48] == 84  # 13·6 + 6
    assert rows[[0, 48], [48, 0]].tolist() == [0, 168]
    assert rows[[1, 7], [0, 0]].tolist() == [85, 97]  # one further along the second side, the first


def test_a_square_sees_itself_alone() -> None:
    torch.manual_seed(0)
    net, x = FlatAttention(4, heads=2), torch.randn(1, 4, 8, 8, 3)
    moved = x.clone()
    moved[0, :, 2, 2, 1] = torch.randn(4)
    with torch.no_grad():
        changed = (net(x) - net(moved)).abs()[0] > 1e-7
    assert changed[:7, :7].all()
    assert not changed[7:].any()
    assert not changed[:, 7:].any()


def test_the_mean_over_channels_is_taken_before_the_last_layer() -> None:
    torch.manual_seed(0)
    net, x = FlatAttention(4, heads=2), torch.randn(2, 4, 7, 7, 2)
    with torch.no_grad():
        tokens = x.permute(0, 4, 2, 3, 1)
        tokens = tokens + net.within_squares(net.norm(tokens))
        tokens = tokens + net.transform(tokens)
        torch.testing.assert_close(net(x), tokens.mean(dim=(1, 4)))


def test_pairs_lack_one_then_two_then_three() -> None:
    names = [[subset_name(s) for s in pair] for pair in in_pairs().tolist()]
    assert names[0] == ["t1+t1c+t2", "t1+t2+flair"]  # without FLAIR, without T1c
    assert names[2] == ["t1+t2", "t1c+t2"]  # without FLAIR and T1c, without FLAIR and T1
    assert names[-1] == ["t1c", "flair"]
    assert len({name for pair in names for name in pair}) == 14


def trained(**options: Any) -> tuple[UniMRSeg, Tensor]:
    """Give a network that trains while its norms do not, and an image."""
    torch.manual_seed(0)
    net = UniMRSeg(width=4, **options)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)  # type: ignore[arg-type]
    net.eval()
    net.training = True
    return net, torch.randn(1, 4, 16, 16, 16)


def test_all_incomplete_subsets_are_compared_with_the_complete_one() -> None:
    net, image = trained()
    penalties = net(image, ALL).penalties
    maps = apart = torch.zeros(())
    with torch.no_grad():
        levels = net.complete(image)
        target = to_maps(net.head(net.joined(levels)))
        for subset in in_pairs().flatten(0, 1):
            seen = torch.where(subset.view(1, 4, 1, 1, 1), image, 0)
            own = net.adapted(seen)
            maps = maps + (1 - agreement(to_maps(net.head(net.joined(own))), target)) / 2
            apart = apart + sum(distance(x, y) for x, y in zip(own, levels, strict=True)) / 2
    torch.testing.assert_close(penalties["consistency"], maps[0])
    torch.testing.assert_close(penalties["levels"], 0.2 * apart[0])


def test_an_incomplete_case_is_compared_with_nothing() -> None:
    net, image = trained(pairs=1)
    lacks = torch.tensor([[True, True, False, True]])
    assert net(image, lacks).penalties == {}
    torch.manual_seed(1)
    alone = net(image, ALL).penalties
    torch.manual_seed(1)
    beside = net(image.repeat(2, 1, 1, 1, 1), torch.cat([ALL, lacks])).penalties
    for name, value in alone.items():
        torch.testing.assert_close(beside[name], value / 2)


def test_what_is_computed_again_moves_no_statistics() -> None:
    net, image = trained(pairs=2)
    penalties = net.train()(image, ALL).penalties
    kept = {name: x.clone() for name, x in net.named_buffers()}
    (penalties["consistency"] + penalties["levels"]).backward()
    counts = ("num_batches_tracked",)
    for name, x in net.named_buffers():
        assert name.endswith(counts) or torch.equal(x, kept[name]), name
    assert all(m.momentum == 0.1 for m in net.modules() if isinstance(m, nn.BatchNorm3d))


@pytest.mark.parametrize("statistics", ["frozen", "released"])
def test_the_encoder_is_frozen(statistics: str) -> None:
    net, image = trained(pairs=1, statistics=statistics)
    before = {name: x.clone() for name, x in net.stages.state_dict().items()}
    sum(net.train()(image, ALL).penalties.values(), torch.zeros(())).backward()
    assert all(p.grad is None for p in net.stages.parameters())
    moved = [n for n, x in net.stages.state_dict().items() if not torch.equal(x, before[n])]
    assert bool(moved) is (statistics == "released")
    assert all("running" in name or "tracked" in name for name in moved)


def spread(*directions: list[float]) -> Tensor:
    """Give maps whose means over space point there."""
    return torch.tensor(directions).view(len(directions), -1, 1, 1, 1).expand(-1, -1, 2, 2, 2)


def test_contrast_is_that_of_four_vectors() -> None:
    complete, incomplete = spread([1, 0], [0, 1]), spread([3, 0], [0, 5])
    both = torch.ones(2, dtype=torch.bool)
    # Alike in a case and at right angles to the other: -log(e² / (e⁰ + e⁰)).
    found = contrast([incomplete] * 3, [complete] * 3, both)
    assert float(found) == pytest.approx(math.log(2) - 2)
    turned = contrast([incomplete.flip(0)], [complete], both)
    # At right angles in a case; of the other case one is alike: -log(e⁰ / (e⁰ + e²)).
    assert float(turned) == pytest.approx(math.log(1 + math.e**2))


def test_contrast_needs_another_complete_case() -> None:
    complete, incomplete = spread([1, 0], [0, 1]), spread([3, 0], [0, 5])
    lacks = torch.tensor([True, False])
    assert float(contrast([incomplete], [complete], lacks)) == 0
    assert float(contrast([incomplete[:1]], [complete[:1]], lacks[:1])) == 0


def test_the_second_stage_learns_from_the_complete_image_too() -> None:
    torch.manual_seed(0)
    net, image = UniMRSeg(width=4, stage="contrast").train(), torch.randn(2, 4, 16, 16, 16)
    present = torch.tensor([[True, False, False, True], [False, True, False, False]])
    available = torch.tensor([[True] * 4, [True, True, True, False]])
    output = net(image, present, available)
    (complete,) = output.auxiliary
    assert complete.valid is not None
    assert complete.valid.tolist() == [True, False]
    torch.testing.assert_close(complete.logits, net(image, available, available).logits)
    assert set(output.penalties) == {"contrast"}


def test_a_trunk_alone_predicts_once() -> None:
    net = UniMRSeg(width=4, stage="contrast", contrast=0.0).train()
    output = net(torch.randn(1, 4, 16, 16, 16), ALL, ALL)
    assert not output.auxiliary
    assert not output.penalties


def test_what_is_left_of_an_image_comes_first() -> None:
    torch.manual_seed(0)
    marks = torch.arange(1.0, 5.0).view(1, 4, 1, 1, 1)
    image = marks.expand(400, 4, 8, 8, 2).clone()
    found = damaged(image, ALL.expand(400, 4))
    left = [[int(x.max()) for x in sample] for sample in found]
    counts = [sum(mark > 0 for mark in marks) for marks in left]
    for sample, count in zip(left, counts, strict=True):
        assert all(sample[:count])
        assert not any(sample[count:])
        assert len(set(sample[:count])) == count  # no channel twice
    # Half keep all, and of the others a quarter.
    assert counts.count(4) / 400 == pytest.approx(5 / 8, abs=0.08)
    assert counts.count(1) / 400 == pytest.approx(1 / 8, abs=0.06)
    assert len({tuple(sample) for sample in left if all(sample)}) == 24
    whole = found[[count == 4 for count in counts]]
    assert float((whole == 0).double().mean()) == pytest.approx(0.15, abs=0.01)
    some = torch.tensor([[False, True, False, True]]).expand(400, 4)
    first = damaged(image * over(some, image), some)[:, 0].flatten(1).amax(dim=1)
    assert set(first.tolist()) == {2, 4}


def test_each_slice_is_painted_from_0_to_1() -> None:
    image = torch.rand(1, 4, 12, 12, 12)
    low, high = image.amin(dim=(2, 3), keepdim=True), image.amax(dim=(2, 3), keepdim=True)
    right = (image - low) / (high - low)
    for value in repaired(right, 7 * image - 3, ALL).values():
        assert float(value) == pytest.approx(0, abs=1e-5)
    some = torch.tensor([[True, False, True, True]])
    wrong = right.clone()
    wrong[:, 1] += 0.5
    assert float(repaired(wrong, image, some)["difference"]) == pytest.approx(0, abs=1e-6)
    assert float(repaired(wrong, image, ALL)["difference"]) == pytest.approx(0.5 / 4)


def test_flat_images_are_as_similar_as_their_light() -> None:
    x, y = torch.full((1, 4, 11, 11, 11), 0.5), torch.full((1, 4, 11, 11, 11), 0.25)
    expected = (2 * 0.5 * 0.25 + 1e-4) / (0.5**2 + 0.25**2 + 1e-4)
    torch.testing.assert_close(similarity(x, y), torch.full((1, 4), expected))


def test_the_first_stage_paints_and_segments_nothing() -> None:
    net = UniMRSeg(width=4, stage="reconstruction").train()
    output = net(torch.randn(2, 4, 16, 16, 16), ALL.expand(2, 4), ALL.expand(2, 4))
    assert output.weight == 0
    assert set(output.penalties) == {"difference", "similarity"}
    assert not net.eval()(torch.randn(1, 4, 16, 16, 16), ALL).penalties
