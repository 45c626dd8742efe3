"""Count how probable regions were and whether they were there, one subset after the other."""

from collections.abc import Sequence
from math import log2

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bts_lightning.compiled import compiled
from bts_lightning.metrics.calibration.counts import BAND_MM, BINS, Calibration
from bts_lightning.metrics.masks import LabelMaps, members_of
from bts_lightning.metrics.policies import Floats
from bts_lightning.modalities import BRATS, Scheme

# Of a voxel: beyond the brain, in it, and in the band too.
_BRAIN, _BAND = 1, 2


class Tally:
    """Take the probabilities of each subset of a case as soon as they are known.

    Args:
        truth: D×H×W.
        brain: where any image shows anything, D×H×W; the truth belongs to it.
        spacing: mm between voxels.
        scheme: what the labels mean.
    """

    def __init__(
        self,
        truth: LabelMaps,
        brain: NDArray[np.bool_],
        spacing: Sequence[float],
        scheme: Scheme = BRATS,
    ) -> None:
        self.members = members_of(scheme)
        self.truth = np.ascontiguousarray(truth)
        inside = brain | (self.truth > 0)
        self.areas = np.stack(
            [inside * _BRAIN + (inside & _band(m[self.truth], spacing)) for m in self.members]
        ).astype(np.uint8)
        self._bins: list[Floats] = []
        self._squares: list[Floats] = []
        self._entropy: list[Floats] = []

    def add(self, predicted: LabelMaps, probabilities: NDArray[np.float32]) -> None:
        """Count a subset with its label map D×H×W and the probabilities of regions, R×D×H×W."""
        bins = np.zeros((len(self.members), 2, BINS, 3))
        squares, entropy = np.zeros((len(self.members), 2)), np.zeros(len(self.members))
        labels, truth = np.ascontiguousarray(predicted).ravel(), self.truth.ravel()
        for r, member in enumerate(self.members):
            probability = np.ascontiguousarray(probabilities[r]).ravel()
            areas = self.areas[r].ravel()
            entropy[r] = _count(probability, labels, truth, areas, member, bins[r], squares[r])
        # The band is a part of the whole brain.
        self._bins.append(np.stack([bins[:, 1], bins.sum(axis=1)], axis=1))
        self._squares.append(np.stack([squares[:, 1], squares.sum(axis=1)], axis=1))
        self._entropy.append(entropy)

    def counts(self) -> Calibration:
        """Give what was counted."""
        return Calibration(*map(np.stack, (self._bins, self._squares, self._entropy)))


def _band(there: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.bool_]:
    """Mark the voxels at most `BAND_MM` from the surface, on either side."""
    near = np.zeros_like(there)
    if not there.any():
        return near
    (box,) = ndimage.find_objects(there.astype(np.uint8))
    margin = [int(BAND_MM / mm) + 1 for mm in spacing]
    around = tuple(slice(max(0, b.start - m), b.stop + m) for b, m in zip(box, margin, strict=True))
    surface = there[around] & ~ndimage.binary_erosion(there[around])
    distance = ndimage.distance_transform_edt(~surface, sampling=spacing)
    near[around] = distance <= BAND_MM + 1e-6  # a sum of squares of spacings is not exact
    return near


@compiled
def _count(
    probability: NDArray[np.float32],
    labels: LabelMaps,
    truth: LabelMaps,
    areas: NDArray[np.uint8],
    member: NDArray[np.bool_],
    bins: Floats,
    squares: Floats,
) -> float:
    """Fill bins and squares, brain without band first; give the entropy of what is predicted."""
    found, bits = 0, 0.0
    for i in range(probability.size):
        p = float(probability[i])
        if areas[i]:
            area = areas[i] - 1
            # What is no number stays one in the sums.
            b = min(int(p * BINS), BINS - 1) if p > 0 else 0
            there = 1.0 if member[truth[i]] else 0.0
            bins[area, b, 0] += 1
            bins[area, b, 1] += p
            bins[area, b, 2] += there
            squares[area] += (p - there) ** 2
        if member[labels[i]]:
            found += 1
            if 0 < p < 1:
                bits -= p * log2(p) + (1 - p) * log2(1 - p)
    return bits / found if found else np.nan
