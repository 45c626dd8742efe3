"""The averaged probabilities of all subsets, on the device while they fit there."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bts_lightning.inference.protocol import Protocol
from bts_lightning.inference.windows import Windows, importance
from bts_lightning.losses import SegmentationLoss

# Of a GPU's free memory; the network needs the rest.
SHARE_OF_MEMORY = 0.5
# Weights of this many windows are kept; neighbours in time ask for the same ones.
KEPT = 16


class Averages:
    """Add up weighted probabilities in place.

    Args:
        windows: where they lie.
        shown: windows × subsets, which windows each subset's average is made of.
        loss: owns the way from logits to probabilities.
        protocol: how windows are weighted, and how many views each has.
        device: where the probabilities come from.

    Attributes:
        sums: S×C×D×H×W in single precision; when every window has been added, the averages of
            what the protocol averages.
    """

    def __init__(
        self,
        windows: Windows,
        shown: NDArray[np.bool_],
        loss: SegmentationLoss,
        protocol: Protocol,
        device: torch.device,
    ) -> None:
        self.temperature = protocol.divisor
        self.loss, self.of_logits = loss, protocol.average == "logits"
        shape = (shown.shape[1], loss.channels, *windows.volume.shape[1:])
        needed = 4 * torch.Size(shape).numel()
        fits = (
            device.type != "cuda" or needed < SHARE_OF_MEMORY * torch.cuda.mem_get_info(device)[0]
        )
        self.sums = torch.zeros(shape, device=device if fits else "cpu")
        self.windows = windows
        self.importance = importance(windows.size, protocol.weighting)
        self.views = 8 if protocol.mirror else 1
        # Nearly always one pattern, all windows; not where modalities show different extents.
        patterns, self.pattern = np.unique(shown.T, axis=0, return_inverse=True)
        self.totals = [self._total(used) for used in patterns]
        self._shares: dict[tuple[int, int], Tensor] = {}

    def read(self, logits: Tensor) -> Tensor:
        """Turn logits into what is averaged."""
        if self.temperature != 1:
            logits = logits.float() / self.temperature
        return logits.float() if self.of_logits else self.loss.probabilities(logits)

    def inside(self, s: int) -> Tensor:
        """Give what was averaged for a subset within the case, 1×C×D×H×W."""
        return self.sums[s][(slice(None), *self.windows.inside)].unsqueeze(0)

    def said(self, s: int) -> Tensor:
        """Tell where a window showed anything: elsewhere nothing was said, not the logit 0."""
        total = self.totals[int(self.pattern[s])][self.windows.inside]
        return total.to(self.sums.device) > 0

    def probabilities(self, s: int) -> Tensor:
        """Give the averaged probabilities of a subset within the case, 1×C×D×H×W."""
        averaged = self.inside(s)
        if not self.of_logits:
            return averaged
        return torch.where(self.said(s), self.loss.probabilities(averaged), 0)

    def add(self, subsets: Sequence[int], windows: Sequence[int], probabilities: Tensor) -> None:
        """Add one view of these windows for these subsets, S'×W'×C×d×h×w."""
        for s, of_windows in zip(subsets, probabilities.to(self.sums.device), strict=True):
            for w, probability in zip(windows, of_windows, strict=True):
                place: Tensor = self.sums[s][(slice(None), *self.windows.views[w])]
                place.addcmul_(probability, self.share(w, s))

    def leave_device(self) -> bool:
        """Make room on the device; say whether there was any to make."""
        if self.sums.device.type == "cpu":
            return False
        self.sums = self.sums.cpu()
        self._shares.clear()
        return True

    def share(self, window: int, subset: int) -> Tensor:
        """Give what a view of a window counts at each of its voxels; over all they add up to 1."""
        key = window, int(self.pattern[subset])
        if key not in self._shares:
            if len(self._shares) >= KEPT:
                self._shares.clear()
            total = self.totals[key[1]][self.windows.views[window]]
            self._shares[key] = (self.importance / total / self.views).to(self.sums.device)
        return self._shares[key]

    def _total(self, used: NDArray[np.bool_]) -> Tensor:
        total = torch.zeros(self.windows.volume.shape[1:])
        for view, use in zip(self.windows.views, used, strict=True):
            if use:
                total[view] += self.importance
        return total
