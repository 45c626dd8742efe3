"""`a2fseg_paper` is the text of the paper: its equations, written out, and its recipe."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bts_lightning import config
from bts_lightning.task import SegmentationTask

# The first sample shows two modalities, the second one all, the third a single one.
AVAILABLE = [[1, 3], [0, 1, 2, 3], [2]]
PRESENT = torch.tensor([[m in names for m in range(4)] for names in AVAILABLE])


@pytest.fixture
def task() -> SegmentationTask:
    torch.manual_seed(0)
    small = ["net.width=3", "net.poolings=2", "net.width_limit=6"]
    built: SegmentationTask = config.build(config.load(["a2fseg_paper", *small]).task)
    return built.double().train()


def head(features: Tensor, weight: Tensor) -> Tensor:
    """Predict four labels from C×D×H×W features by a linear map at each voxel."""
    return torch.einsum("lc,cdhw->ldhw", weight.flatten(1), features)


def basic_loss(prediction: Tensor, truth: Tensor) -> Tensor:
    """Equation 4, of one image: cross entropy + soft Dice over the four labels."""
    probability = prediction.exp() / prediction.exp().sum(dim=0)
    entropy, dice = torch.zeros(()), torch.zeros(())
    for label in range(4):
        inside = (truth == label).double()
        entropy = entropy - (inside * probability[label].log()).sum() / truth.numel()
        overlap, sizes = inside * probability[label], inside + probability[label]
        dice = dice + (1 - 2 * overlap.sum() / sizes.sum()) / 4
    return entropy + dice


def total_loss(net: Any, image: Tensor, truth: Tensor, available: list[int]) -> Tensor:
    """Equations 1 to 3 and 5, of one image; nothing but the features is the network's."""
    feature = {m: net.unets[m](image[m].view(1, 1, *truth.shape))[0][0] for m in available}
    average = sum(feature.values()) / len(available)
    score = {}
    for m in available:
        theta = net.attention[m][0]
        seen = torch.cat([feature[m], average]).unsqueeze(0)
        convolved = F.conv3d(seen, theta.weight, theta.bias, padding=1)[0]
        score[m] = 1 / (1 + (-convolved).exp())  # (1)
    exponentials = sum(score[m].exp() for m in available)
    weight = {m: score[m].exp() / exponentials for m in available}  # (2)
    adapted = sum(weight[m] * feature[m] for m in available)  # (3)
    total = basic_loss(head(average, net.average_head.weight), truth)
    total = total + basic_loss(head(adapted, net.head.weight), truth)
    for m in available:
        (own,) = net.unets[m].expand.heads
        total = total + basic_loss(head(feature[m], own.weight), truth)
    return total  # (5)


def test_loss_and_gradients_are_those_of_the_five_equations(task: SegmentationTask) -> None:
    image = torch.randn(3, 4, 8, 8, 8, dtype=torch.float64)
    label = torch.randint(4, (3, 8, 8, 8)).to(torch.uint8)
    batch = {"image": image, "label": label, "present": PRESENT, "available": PRESENT}
    ours = torch.stack(list(task._step(batch).values())).sum()
    literal = torch.stack(
        [total_loss(task.net, *each) for each in zip(image, label, AVAILABLE, strict=True)]
    ).mean()
    torch.testing.assert_close(ours, literal, rtol=1e-6, atol=0)
    weights = dict(task.net.named_parameters())
    found, expected = (torch.autograd.grad(x, list(weights.values())) for x in (ours, literal))
    largest = max(gradient.norm() for gradient in expected)
    for name, one, other in zip(weights, found, expected, strict=True):
        assert (one - other).norm() < 1e-6 * max(other.norm(), 1e-3 * largest), name


def test_the_rate_is_that_of_the_text(task: SegmentationTask) -> None:
    made = task.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.param_groups[0]["weight_decay"] == 0
    for epoch in range(400):
        rate = optimizer.param_groups[0]["lr"]
        assert rate == pytest.approx(0.01 * (1 - epoch / 400) ** 0.9)
        optimizer.step()  # without a gradient it moves nothing
        schedule.step()


def test_one_override_gives_the_same_network_the_recipe_of_the_code() -> None:
    paper, code = config.load(["a2fseg_paper"]), config.load(["a2fseg", "net.variant=paper"])
    recipe = config.load(["a2fseg"])
    assert code.task.loss == recipe.task.loss
    assert code.task.optimizer == recipe.task.optimizer
    with torch.device("meta"):
        one, other = config.build(paper.net), config.build(code.net)
    assert one.final_head_weight == other.final_head_weight == 1
    names = [[name for name, _ in net.named_parameters()] for net in (one, other)]
    assert names[0] == names[1]
