"""How well the probabilities of regions agree with the truth, read off counts."""

from dataclasses import dataclass, fields

import numpy as np

from bts_lightning.metrics.policies import Floats

# Far from a tumour every network is right and sure; a band around the truth shows what is not.
BAND_MM = 5.0
# Of equal width between 0 and 1, as many as in Guo et al. 2017 (arXiv:1706.04599).
BINS = 15
AREAS = ("band", "all")
BAND, ALL = range(2)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Counts of some subsets of a case; arrays begin with subsets × regions.

    Attributes:
        bins: areas × bins × 3: voxels, the sum of their probabilities, how many the truth has.
        squares: areas: the sum of squared differences between probability and truth.
        entropy: the mean, in bits, inside what is predicted; NaN where that is nothing.
    """

    bins: Floats
    squares: Floats
    entropy: Floats

    @property
    def errors(self) -> Floats:
        """The expected calibration errors, … × areas."""
        return expected_error(self.bins)

    @property
    def brier(self) -> Floats:
        """The Brier scores, … × areas."""
        return _share(self.squares, self.bins[..., 0].sum(axis=-1))

    def some(self, subsets: slice) -> "Calibration":
        """Take some of the subsets."""
        return Calibration(*(getattr(self, field.name)[subsets] for field in fields(self)))


def expected_error(bins: Floats) -> Floats:
    """Average |mean probability - share of the truth| over bins, weighted by their voxels."""
    return _share(np.abs(bins[..., 1] - bins[..., 2]).sum(axis=-1), bins[..., 0].sum(axis=-1))


def aurc(confidence: Floats, risk: Floats) -> float:
    """Average the risk of the k most confident cases over all k: the area under risk-coverage.

    Cases of equal confidence come in any order: each stands for their mean.
    """
    _, place = np.unique(-confidence, return_inverse=True)
    tied = np.bincount(place, risk) / np.bincount(place)
    ranked = tied[np.sort(place)]
    return float(np.mean(np.cumsum(ranked) / np.arange(1, len(ranked) + 1)))


def _share(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
