"""Means per subset and region that ranks can add up, for logging while training."""

import torch
from torch import Tensor
from torchmetrics import Metric

from bts_lightning.modalities import REGIONS, SUBSETS


class SubsetScores(Metric):
    """Average Dice and HD95 over cases, separately for each subset and region.

    NaN, which the policy `nan` gives to empty regions, counts for nothing. The states are sums and
    counts, so that ranks with different numbers of cases, or none, add up to the exact mean.

    Args:
        subsets: how many rows.

    Example:
        >>> scores = SubsetScores(15)
        >>> scores.update(torch.tensor([0]), torch.full((1, 3), 0.5), torch.full((1, 3), 2.0))
        >>> dice, hd95 = scores.compute()
        >>> dice[0].tolist()
        [0.5, 0.5, 0.5]
    """

    full_state_update = False
    sums: Tensor
    counts: Tensor

    def __init__(self, subsets: int = len(SUBSETS)) -> None:
        super().__init__()
        # Single precision, because not every accelerator has double.
        zeros = torch.zeros(2, subsets, len(REGIONS))  # dice/hd95 S R
        self.add_state("sums", default=zeros, dist_reduce_fx="sum")
        self.add_state("counts", default=zeros.clone(), dist_reduce_fx="sum")

    @property
    def update_called(self) -> bool:
        """Say yes always: a rank without labelled cases is no mistake to be warned of."""
        return True

    def update(self, rows: Tensor, dice: Tensor, hd95: Tensor) -> None:
        """Add scores (len(rows)×3 each) of the subsets at these rows."""
        values = torch.stack([dice, hd95]).to(self.sums)
        known = ~values.isnan()
        rows = rows.to(self.sums.device)
        self.sums.index_add_(1, rows, torch.where(known, values, 0))
        self.counts.index_add_(1, rows, known.to(self.counts))

    def compute(self) -> tuple[Tensor, Tensor]:
        """Give mean Dice and mean HD95, S×3 each; NaN where there was no value."""
        dice, hd95 = self.sums / self.counts
        return dice, hd95
