"""Each term gives what a calculator says."""

import math

import pytest
import torch
from torch import nn

from bts_lightning.distillation import AnchorTerm, LogitTerm, PrototypeTerm, Term
from bts_lightning.distillation.answer import Answer
from bts_lightning.distillation.terms import neighbourhood, similarities
from bts_lightning.errors import ConfigError
from bts_lightning.losses import LabelLoss, RegionLoss, SegmentationLoss
from bts_lightning.networks.adaptor import InputAdaptor
from bts_lightning.networks.backbone import Features, Output
from bts_lightning.networks.medmap import MedMAP
from bts_lightning.networks.rfnet import RFNet
from bts_lightning.networks.unet import UNet
from tests.distillation.parts import COMPLETE, answer, random_label

LOSSES = [RegionLoss(), LabelLoss()]


def test_divergence_of_labels_is_what_a_calculator_says() -> None:
    # One voxel, logits scaled by T = 2: the teacher says ½, ½, 0, 0 and the student ¼ each.
    far = -2000.0
    teacher = torch.tensor([0.0, 0.0, far, far]).view(1, 4, 1, 1, 1)
    student = torch.zeros(1, 4, 1, 1, 1)
    label = torch.zeros(1, 1, 1, 1, dtype=torch.uint8)
    term = LogitTerm(temperature=2)
    found = term(answer(student), answer(teacher), label, LabelLoss())
    # Two classes with ½ log(½ / ¼), two with 0, averaged over the four.
    assert found.item() == pytest.approx(2 * 0.5 * math.log(2) / 4)


def test_temperature_softens_before_the_comparison() -> None:
    teacher = torch.tensor([2 * math.log(3), 0.0, 0.0, 0.0]).view(1, 4, 1, 1, 1)
    student = torch.zeros(1, 4, 1, 1, 1)
    label = torch.zeros(1, 1, 1, 1, dtype=torch.uint8)
    # At T = 2 the teacher says ½, 1/6, 1/6, 1/6.
    by_hand = (0.5 * math.log(2) + 3 / 6 * math.log(2 / 3)) / 4
    plain = LogitTerm(temperature=2)(answer(student), answer(teacher), label, LabelLoss())
    assert plain.item() == pytest.approx(by_hand)
    scaled = LogitTerm(temperature=2, scale_by_t2=True)
    found = scaled(answer(student), answer(teacher), label, LabelLoss())
    assert found.item() == pytest.approx(4 * by_hand)


def test_divergence_of_regions_is_that_of_coins() -> None:
    teacher = torch.tensor([math.log(3), 0.0, 0.0]).view(1, 3, 1, 1, 1)  # ¾, ½, ½
    student = torch.zeros(1, 3, 1, 1, 1)  # ½ each
    label = torch.zeros(1, 1, 1, 1, dtype=torch.uint8)
    found = LogitTerm(temperature=1)(answer(student), answer(teacher), label, RegionLoss())
    by_hand = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert found.item() == pytest.approx(by_hand / 3)


def test_near_the_tumour_only_its_neighbourhood_counts() -> None:
    label = torch.zeros(2, 9, 9, 9, dtype=torch.uint8)
    label[0, 4, 4, 4] = 2
    near = neighbourhood(label, margin=2)
    assert near[0].sum() == 5**3
    assert not near[1].any()
    teacher, student = torch.zeros(2, 3, 9, 9, 9), torch.zeros(2, 3, 9, 9, 9)
    teacher[:, :, 0, 0, 0] = 50.0  # far away from the tumour
    term = LogitTerm(temperature=1, where="tumour", margin=2)
    assert term(answer(student), answer(teacher), label, RegionLoss()).tolist() == [0, 0]
    teacher[:, :, 4, 4, 5] = 50.0  # beside it: one of 125 voxels is sure, log 2 away from ½
    found = term(answer(student), answer(teacher), label, RegionLoss())
    assert found.tolist() == pytest.approx([math.log(2) / 125, 0])


def test_prototypes_are_what_a_calculator_says() -> None:
    # Four voxels in two dimensions: two of label 0 along x, one of 1 along y, one of 1 along x.
    label = torch.tensor([0, 0, 1, 1], dtype=torch.uint8).view(1, 4, 1, 1)
    teacher = torch.tensor([[1.0, 2.0, 0.0, 3.0], [0.0, 0.0, 3.0, 0.0]]).view(1, 2, 4, 1, 1)
    cosines, shown = similarities(teacher, label)
    assert shown.tolist() == [[True, True, False, False]]
    half = math.sqrt(0.5)
    torch.testing.assert_close(cosines[0, 0], torch.tensor([1.0, 1.0, 0.0, 1.0]))
    torch.testing.assert_close(cosines[0, 1], torch.full((4,), half))
    # The student has one feature, equal everywhere: all its cosines are 1.
    student = torch.full((1, 1, 4, 1, 1), 0.3)
    term = PrototypeTerm()
    found = term(answer(embedding=student), answer(embedding=teacher), label, LabelLoss())
    assert found.item() == pytest.approx((1 / 4 + (1 - half) ** 2) / 2)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("term", [LogitTerm(), LogitTerm(where="tumour"), PrototypeTerm()])
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(
    term: Term, loss: SegmentationLoss
) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, loss.channels, 8, 8, 8, requires_grad=True)
    embedding = torch.randn(2, 5, 8, 8, 8, requires_grad=True)
    frozen = answer(logits.detach(), embedding.detach())
    value = term(answer(logits, embedding), frozen, random_label(2, 8, 8, 8), loss)
    assert value.tolist() == [0, 0]
    read = embedding if isinstance(term, PrototypeTerm) else logits
    (gradient,) = torch.autograd.grad(value.sum(), read)
    assert gradient.abs().max() < 1e-6


def test_the_anchor_term_is_half_the_mean_square_over_what_is_present() -> None:
    teacher = MedMAP(RFNet(width=4), levels="finest").eval()
    student = RFNet(width=4)
    shape = (1, 4, 4, 2, 2, 2)
    seen = torch.tensor([[True, True, False, False]])
    theirs = Features((torch.full(shape, 3.0),) * 4, (torch.ones_like(seen),) * 4, seen)
    own = torch.zeros(shape)
    own[:, 1] = 2.0
    own[:, 2:] = math.nan  # absent
    ours = Features((own,) * 4, (seen,) * 4, seen)
    nothing = torch.zeros(1, 3, 2, 2, 2)
    pair = (
        Answer(student, Output(nothing, features=ours)),
        Answer(teacher, Output(nothing, features=theirs)),
    )
    term = AnchorTerm()
    term.check(*pair)
    found = term(*pair, torch.zeros(1, 2, 2, 2, dtype=torch.uint8), LabelLoss())
    assert found.tolist() == [0.5 * (3**2 + 1**2) / 2]


def test_an_anchor_needs_a_teacher_that_has_one_and_a_student_that_can_follow() -> None:
    image = torch.randn(2, 4, 16, 16, 16)
    nets = [
        UNet(**UNet.small()),
        InputAdaptor(UNet(**UNet.small())),
        RFNet(width=4),
        MedMAP(RFNet(width=4)),
        MedMAP(RFNet(width=8)),
    ]
    early, adapted, late, aligned, wide = (Answer(net, net.eval()(image, COMPLETE)) for net in nets)
    term = AnchorTerm()
    for student, teacher in ((late, aligned), (adapted, adapted)):
        term.check(student, teacher)
    with pytest.raises(ConfigError, match=r"teacher RFNet has no anchor.*medmap"):
        term.check(late, late)
    with pytest.raises(ConfigError, match=r"student UNet has no features.*mix-in adaptor"):
        term.check(early, adapted)
    with pytest.raises(ConfigError, match=r"shape \(4, 16, 16, 16\), the teacher's anchor \(8, "):
        term.check(late, wide)


def test_a_linear_student_and_a_linear_teacher_meet() -> None:
    """Descend the logit term alone: the student ends with the teacher's predictions."""
    torch.manual_seed(0)
    teacher, student = nn.Conv3d(1, 4, 1), nn.Conv3d(1, 4, 1)
    x, label = torch.randn(1, 1, 6, 6, 6), random_label(1, 6, 6, 6)
    term, loss = LogitTerm(temperature=1), LabelLoss()
    optimizer = torch.optim.Adam(student.parameters(), lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        term(answer(student(x)), answer(teacher(x).detach()), label, loss).sum().backward()
        optimizer.step()
    torch.testing.assert_close(
        student(x).softmax(dim=1), teacher(x).softmax(dim=1), atol=2e-2, rtol=0
    )
