"""Losses give the values that paper and pencil give."""

import math

import pytest
import torch
from torch import Tensor

from bts_lightning.losses import (
    LabelLoss,
    RegionLoss,
    SegmentationLoss,
    SeparateLabelLoss,
    regions_of,
)
from bts_lightning.modalities import SCHEMES

# One 2×2×2 sample: one voxel each of NCR (1), ED (2), ET (3), five of background.
LABEL = torch.tensor([1, 2, 3, 0, 0, 0, 0, 0], dtype=torch.uint8).view(1, 2, 2, 2)
EMPTY = torch.zeros_like(LABEL)
REGION, LABELS = (1, 3, 2, 2, 2), (1, 4, 2, 2, 2)


def sure(loss: SegmentationLoss, label: Tensor) -> Tensor:
    """Make logits that are sure of the truth."""
    if isinstance(loss, RegionLoss):
        return torch.where(regions_of(label), 50.0, -50.0)
    return 50.0 * torch.stack([label == value for value in range(4)], dim=1)


def test_regions_hold_their_labels() -> None:
    wt, tc, et = regions_of(LABEL)[0].flatten(1).tolist()
    assert wt == [True, True, True] + [False] * 5
    assert tc == [True, False, True] + [False] * 5
    assert et == [False, False, True] + [False] * 5


def test_region_loss_of_zero_logits() -> None:
    # p = 1/2 everywhere. Entropy: log 2. Dice: 2·(n/2) / (8/2 + n) = n / (4 + n), n = 3, 2, 1.
    dice = (3 / 7 + 2 / 6 + 1 / 5) / 3
    assert RegionLoss()(torch.zeros(REGION), LABEL).item() == pytest.approx(
        math.log(2) + 1 - dice, abs=1e-6
    )


def test_smoothing_enters_numerator_and_denominator() -> None:
    # Dice alone, smooth 1: (n + 1) / (4 + n + 1), as AMoE-BTS has it with 1e-5.
    dice = (4 / 8 + 3 / 7 + 2 / 6) / 3
    value = RegionLoss(bce=0, smooth=1.0, epsilon=0)(torch.zeros(REGION), LABEL)
    assert value.item() == pytest.approx(1 - dice, abs=1e-6)


def test_region_dice_is_per_sample_or_per_batch() -> None:
    logits, label = torch.zeros(2, *REGION[1:]), torch.cat([LABEL, EMPTY])
    sample = (3 / 7 + 2 / 6 + 1 / 5) / 3  # the empty sample has Dice 0
    batch = (3 / 11 + 2 / 10 + 1 / 9) / 3  # 2·(n/2) / (16/2 + n)
    assert RegionLoss(bce=0)(logits, label).item() == pytest.approx(1 - sample / 2, abs=1e-6)
    assert RegionLoss(bce=0, batch_dice=True)(logits, label).item() == pytest.approx(
        1 - batch, abs=1e-6
    )


def test_label_loss_of_zero_logits() -> None:
    # p = 1/4. Weights 1 - 5/8 and 1 - 1/8: entropy log 4 · (5·3/8 + 3·7/8) / 8.
    entropy = math.log(4) * (5 * 3 / 8 + 3 * 7 / 8) / 8
    # Dice: 2·(n/4) / (8/4 + n), n = 5, 1, 1, 1.
    dice = (2.5 / 7 + 3 * 0.5 / 3) / 4
    value = LabelLoss()(torch.zeros(LABELS), LABEL).item()
    assert value == pytest.approx(entropy + 1 - dice, abs=1e-6)


def test_unweighted_label_loss_is_plain_cross_entropy() -> None:
    torch.manual_seed(0)
    logits = torch.randn(LABELS)
    expected = torch.nn.functional.cross_entropy(logits, LABEL.long())
    torch.testing.assert_close(LabelLoss(weighted=False, dice=0)(logits, LABEL), expected)


def test_niftynets_dice_squares_what_is_predicted() -> None:
    # p = 1/4: 2·(n/4) / (8/16 + n) with 1 added above and below, n = 5, 1, 1, 1.
    dice = (3.5 / 6.5 + 3 * 1.5 / 2.5) / 4
    value = LabelLoss(ce=0, squared=True, smooth=1.0, epsilon=0)(torch.zeros(LABELS), LABEL)
    assert value.item() == pytest.approx(1 - dice, abs=1e-6)


def test_label_dice_over_the_batch_gives_absent_classes_zero() -> None:
    label = torch.cat([LABEL, EMPTY])
    loss = LabelLoss(ce=0)
    assert loss(sure(loss, label), label).item() == pytest.approx(0, abs=1e-6)
    # Only background occurs, and one class of four scores.
    assert loss(sure(loss, EMPTY), EMPTY).item() == pytest.approx(3 / 4, abs=1e-6)


def test_clamped_entropy_has_a_ceiling_and_no_gradient_beyond_it() -> None:
    wrong = torch.zeros(LABELS)
    wrong[:, 3] = 50.0  # sure of ET everywhere, wrong in seven voxels
    wrong.requires_grad_()
    clamped = LabelLoss(cross_entropy="clamped", dice=0)(wrong, LABEL)
    weights = 5 * 3 / 8 + 2 * 7 / 8
    assert clamped.item() == pytest.approx(-math.log(0.005) * weights / 8, rel=1e-5)
    clamped.backward()
    assert wrong.grad is not None
    assert wrong.grad.abs().max() < 1e-6
    free = LabelLoss(dice=0)(wrong, LABEL)
    assert free.item() == pytest.approx(50 * weights / 8, rel=1e-5)


@pytest.mark.parametrize("loss", [RegionLoss(), LabelLoss()])
def test_right_answers_cost_nothing(loss: SegmentationLoss) -> None:
    assert loss(sure(loss, LABEL), LABEL).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", [RegionLoss(), LabelLoss(), LabelLoss(batch_dice=False)])
def test_only_valid_samples_count(loss: SegmentationLoss) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, loss.channels, 2, 2, 2)
    label = torch.cat([LABEL, EMPTY, LABEL])
    spoilt = logits.clone()
    spoilt[1] = float("nan")
    spoilt.requires_grad_()
    valid = torch.tensor([True, False, True])
    value = loss(spoilt, label, valid)
    torch.testing.assert_close(value, loss(logits[valid], label[valid]))
    value.backward()
    assert spoilt.grad is not None
    assert spoilt.grad.isfinite().all()
    assert not spoilt.grad[1].any()


@pytest.mark.parametrize("loss", [RegionLoss(), LabelLoss()])
def test_without_valid_samples_it_is_zero_and_connected(loss: SegmentationLoss) -> None:
    logits = torch.randn(1, loss.channels, 2, 2, 2, requires_grad=True)
    value = loss(logits, LABEL, torch.tensor([False]))
    assert value.item() == 0
    value.backward()
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("loss", [RegionLoss(), LabelLoss()])
@pytest.mark.parametrize("coarser", [2, 4])
def test_coarse_logits_meet_the_middle_of_their_cells(loss: SegmentationLoss, coarser: int) -> None:
    # As nnU-Net's targets do: voxel s·i + s/2, not s·i.
    torch.manual_seed(0)
    label = torch.randint(4, (1, 8, 8, 8)).to(torch.uint8)
    logits = torch.randn(1, loss.channels, *[8 // coarser] * 3)
    middle = slice(coarser // 2, None, coarser)
    torch.testing.assert_close(loss(logits, label), loss(logits, label[:, middle, middle, middle]))


@pytest.mark.parametrize("loss", [RegionLoss(), LabelLoss()])
def test_half_precision_logits_are_compared_in_full(loss: SegmentationLoss) -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, loss.channels, 2, 2, 2)
    assert loss(logits.double(), LABEL).dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(logits, LABEL)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(logits, LABEL))


@pytest.mark.parametrize("loss", [RegionLoss(), LabelLoss()])
def test_probabilities_become_the_labels_they_came_from(loss: SegmentationLoss) -> None:
    probabilities = loss.probabilities(sure(loss, LABEL))
    labels = loss.labels(probabilities)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels, LABEL)


def test_inner_regions_are_painted_over_outer_ones() -> None:
    # Voxels: nothing, WT alone, WT and TC, all three, and ET outside of both.
    wt, tc, et = [0, 1, 1, 1, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]
    probabilities = torch.tensor([wt, tc, et], dtype=torch.float32).view(1, 3, 1, 1, 5)
    assert RegionLoss().labels(probabilities).flatten().tolist() == [0, 2, 1, 3, 3]


def test_wrong_number_of_channels_names_the_right_one() -> None:
    with pytest.raises(ValueError, match="out_channels=4"):
        LabelLoss()(torch.zeros(REGION), LABEL)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("kind", [RegionLoss, LabelLoss, SeparateLabelLoss])
def test_what_is_sure_gives_back_every_class_of_its_scheme(
    name: str, kind: type[SegmentationLoss]
) -> None:
    scheme = SCHEMES[name]
    label = torch.arange(scheme.classes, dtype=torch.uint8).view(1, 1, 1, -1)
    loss = kind(scheme=name)
    classes = torch.stack([label == value for value in range(scheme.classes)], dim=1)
    inside = regions_of(label, scheme)
    logits = torch.where(inside if kind is RegionLoss else classes, 50.0, -50.0)
    assert logits.shape[1] == loss.channels
    if (name, kind) == ("brats2015", RegionLoss):  # two of its classes lie in the same regions
        label = torch.where(label == 3, 1, label)
    torch.testing.assert_close(loss.labels(loss.probabilities(logits)), label)
    torch.testing.assert_close(loss.of_regions(loss.probabilities(logits)) > 0.5, inside)
    assert loss(logits, label) < loss(torch.zeros_like(logits), label)


def test_surprise_is_minus_the_logarithm_of_what_the_labels_were_given() -> None:
    zeros = torch.zeros(LABELS)
    assert RegionLoss().surprise(zeros[:, :3], LABEL).item() == pytest.approx(3 * math.log(2))
    assert LabelLoss(weighted=True).surprise(zeros, LABEL).item() == pytest.approx(math.log(4))
    assert SeparateLabelLoss().surprise(zeros, LABEL).item() == pytest.approx(3 * math.log(2))
    for loss in (RegionLoss(), LabelLoss()):
        assert loss.surprise(sure(loss, LABEL), LABEL) < 1e-6
