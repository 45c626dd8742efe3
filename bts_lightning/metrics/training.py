"""Means per subset and region that ranks can add up, for logging while training."""

import torch
from torch import Tensor
from torchmetrics import Metric

from bts_lightning.modalities import REGIONS, SUBSETS


class SubsetScores(Metric):
    """Average some metrics over cases, separately for each subset and region.

    NaN, which the policy `nan` gives to empty regions, counts for nothing. The states are sums and
    counts, so that ranks with different numbers of cases, or none, add up to the exact mean.

    Args:
        metrics: how many.
        subsets: how many rows.
        regions: how many columns.

    Example:
        >>> scores = SubsetScores(metrics=2)
        >>> scores.update(torch.tensor([0]), torch.full((2, 1, 3), 0.5))
        >>> scores.compute()[0, 0].tolist()
        [0.5, 0.5, 0.5]
    """

    full_state_update = False
    sums: Tensor
    counts: Tensor

    def __init__(
        self, metrics: int, subsets: int = len(SUBSETS), regions: int = len(REGIONS)
    ) -> None:
        super().__init__()
        # Single precision, because not every accelerator has double.
        zeros = torch.zeros(metrics, subsets, regions)
        self.add_state("sums", default=zeros, dist_reduce_fx="sum")
        self.add_state("counts", default=zeros.clone(), dist_reduce_fx="sum")

    @property
    def update_called(self) -> bool:
        """Say yes always: a rank without labelled cases is no mistake to be warned of."""
        return True

    def update(self, rows: Tensor, values: Tensor) -> None:
        """Add values, metrics × rows × regions, of the subsets at these rows."""
        values = values.to(self.sums)
        known = ~values.isnan()
        rows = rows.to(self.sums.device)
        self.sums.index_add_(1, rows, torch.where(known, values, 0))
        self.counts.index_add_(1, rows, known.to(self.counts))

    def compute(self) -> Tensor:
        """Give the means, metrics × subsets × regions; NaN where there was no value."""
        return self.sums / self.counts
