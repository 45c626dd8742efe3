"""Sums and counts per subset and region."""

import math

import torch

from bts_lightning.metrics.training import SubsetScores


def test_mean_is_over_the_cases_that_have_the_subset() -> None:
    scores = SubsetScores(2, 2)
    scores.update(torch.tensor([0, 1]), torch.tensor([[[0.2] * 3, [1.0] * 3], [[1.0] * 3] * 2]))
    scores.update(torch.tensor([0]), torch.tensor([[[0.6] * 3], [[4.0] * 3]]))
    dice, hd95 = scores.compute()
    torch.testing.assert_close(dice, torch.tensor([[0.4] * 3, [1.0] * 3]))
    torch.testing.assert_close(hd95, torch.tensor([[2.5] * 3, [1.0] * 3]))


def test_nan_counts_for_nothing() -> None:
    scores = SubsetScores(1, 1)
    scores.update(torch.tensor([0]), torch.tensor([[[0.5, math.nan, 1.0]]]))
    scores.update(torch.tensor([0]), torch.tensor([[[0.7, 0.3, math.nan]]]))
    torch.testing.assert_close(scores.compute()[0], torch.tensor([[0.6, 0.3, 1.0]]))


def test_ranks_of_different_length_add_up() -> None:
    values = torch.rand(5, 3)
    alone, first, second, idle = (SubsetScores(1, 1) for _ in range(4))
    for i, value in enumerate(values):
        row = (torch.tensor([0]), value[None, None])
        alone.update(*row)
        (first if i < 4 else second).update(*row)
    first.merge_state(second)
    first.merge_state(idle)
    torch.testing.assert_close(first.compute(), alone.compute())


def test_nothing_seen_gives_nan_without_a_warning() -> None:
    means = SubsetScores(2, 3).compute()
    assert means.shape == (2, 3, 3)
    assert means.isnan().all()
