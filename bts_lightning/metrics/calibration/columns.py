"""The columns of a table that hold how well probabilities agree with the truth."""

from typing import TYPE_CHECKING

from bts_lightning.metrics.calibration.counts import ALL, BAND, Calibration
from bts_lightning.metrics.policies import Floats

if TYPE_CHECKING:
    # A report reads the table of metrics and measures nothing: it need not wait for the compiler.
    from bts_lightning.metrics.masks import Masks


def ece_band(masks: "Masks") -> Floats:
    """Give the expected calibration error in the band around the truth."""
    return _of(masks).errors[..., BAND]


def brier_band(masks: "Masks") -> Floats:
    """Give the Brier score in the band around the truth."""
    return _of(masks).brier[..., BAND]


def ece(masks: "Masks") -> Floats:
    """Give the expected calibration error in the brain."""
    return _of(masks).errors[..., ALL]


def brier(masks: "Masks") -> Floats:
    """Give the Brier score in the brain."""
    return _of(masks).brier[..., ALL]


def entropy(masks: "Masks") -> Floats:
    """Give the mean entropy inside what is predicted."""
    return _of(masks).entropy


def _of(masks: "Masks") -> Calibration:
    assert masks.calibration is not None
    return masks.calibration
