"""The projection is the official one, and asks for the whole batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, nn

from bts_lightning.config import build, load
from bts_lightning.errors import ConfigError
from bts_lightning.losses import RegionLoss
from bts_lightning.losses.surgery import operated_gradient, projected
from bts_lightning.networks.gmd import GMD
from bts_lightning.networks.unet import UNet
from bts_lightning.task import SegmentationTask
from tests.networks.conformity import FOLDER, read

GOLDEN = read(FOLDER / "gmd_surgery.npz")


class Fixed(np.random.Generator):
    """Give one order after the other, over and over."""

    def __init__(self, *orders: list[int]) -> None:
        super().__init__(np.random.PCG64(0))
        self.orders = orders
        self.asked = 0

    def permutation(self, x: Any, axis: int = 0) -> Any:
        self.asked += 1
        return self.orders[(self.asked - 1) % len(self.orders)]


@pytest.mark.parametrize("losses", [4, 15])
@pytest.mark.parametrize("order", ["identity", "reverse"])
def test_projection_is_that_of_the_official_code(losses: int, order: str) -> None:
    key = f"K{losses}"
    gradients, has = GOLDEN[f"{key}/grads"], GOLDEN[f"{key}/has"]
    forth = list(range(losses))
    # Theirs turns one pool around before each gradient, so that it goes back and forth.
    chance = Fixed(forth) if order == "identity" else Fixed(forth[::-1], forth)
    weights = nn.Parameter(torch.zeros(gradients.shape[1]))
    terms = [(weights * torch.from_numpy(row)).sum() for row in gradients]
    (merged,) = operated_gradient(terms, [weights], chance)
    # Ours is a sum; theirs, of losses that are not divided by their number, in part a mean.
    expected = GOLDEN[f"{key}/{order}/merged"] * np.where(has.all(axis=0), losses, 1)
    assert np.linalg.norm(merged.numpy() - expected) < 1e-6 * np.linalg.norm(expected)
    assert np.linalg.norm(merged.numpy() - gradients.sum(axis=0)) > 0.05 * np.linalg.norm(expected)


def test_two_gradients_lose_what_points_against_the_other() -> None:
    x = nn.Parameter(torch.zeros(2))
    along, against = x[0], -x[0] + x[1]
    (merged,) = operated_gradient([along, against], [x], Fixed([0, 1]))
    # (1, 0) without its half along (-1, 1), and (-1, 1) without its part along (1, 0).
    assert merged.tolist() == [0.5, 1.5]


def test_gradients_that_agree_stay_as_they_are() -> None:
    gram = np.array([[1.0, 0.5], [0.5, 2.0]])
    assert np.array_equal(projected(gram, [[0, 1], [1, 0]]), np.eye(2))


def test_a_term_without_gradient_takes_no_part() -> None:
    x, y = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    merged = operated_gradient([x.sum(), torch.zeros(())], [x, y], np.random.default_rng(0))
    assert [part.tolist() for part in merged] == [[1, 1], [0, 0, 0]]


def operated(rows: Tensor) -> Tensor:
    """Give what surgery makes of losses with these gradients."""
    weights = nn.Parameter(torch.zeros(rows.shape[1], dtype=rows.dtype))
    terms = [(weights * row).sum() for row in rows]
    (merged,) = operated_gradient(terms, [weights], np.random.default_rng(0))
    return merged


def shares() -> Tensor:
    """Give the gradients of two ranks, whose mean is that of a golden file."""
    whole = torch.from_numpy(GOLDEN["K15/grads"]).double()
    other = torch.randn(whole.shape, generator=torch.Generator().manual_seed(0)).double()
    return torch.stack([whole + other, whole - other])


def as_a_rank(rank: int, folder: str) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    torch.save(operated(shares()[rank]), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_conflicts_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(as_a_rank, (str(tmp_path),), nprocs=2)
    expected = operated(shares().mean(dim=0))
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected)
    alone = torch.stack([operated(own) for own in shares()]).mean(dim=0)
    assert (alone - expected).norm() > 0.1 * expected.norm()


def test_a_step_keeps_its_loss_and_takes_the_operated_gradient() -> None:
    net = UNet(**UNet.small())
    task = SegmentationTask(net, loss=RegionLoss(), optimizer=torch.optim.Adam, gradients="surgery")
    weights = list(net.parameters())
    terms = {"one": weights[0].sum(), "other": -2 * weights[0].sum() + weights[1].sum()}
    total = task._operated(torch.stack(list(terms.values())).sum(), terms)
    torch.testing.assert_close(total, weights[1].sum() - weights[0].sum())
    total.backward()
    # (1, 0) + 2n / (4n + m) (-2, 1), and (-2, 1) without its first part.
    assert weights[0].grad is not None
    assert weights[1].grad is not None
    n, m = weights[0].numel(), weights[1].numel()
    torch.testing.assert_close(
        weights[1].grad, torch.full_like(weights[1], 2 * n / (4 * n + m) + 1)
    )
    torch.testing.assert_close(
        weights[0].grad, torch.full_like(weights[0], 1 - 4 * n / (4 * n + m)), rtol=1e-4, atol=1e-5
    )
    assert all(p.grad is not None for p in weights)


def test_a_compiled_step_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"task\.compile_net with task\.gradients=surgery"):
        SegmentationTask(
            UNet(**UNet.small()),
            loss=RegionLoss(),
            optimizer=torch.optim.Adam,
            gradients="surgery",
            compile_net=True,
        )


def test_gmd_learns_by_surgery() -> None:
    found = build(load(["gmd", "net.width=8"]).task)
    assert isinstance(found.net, GMD)
    assert found.operates
