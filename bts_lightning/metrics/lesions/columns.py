"""The columns of a table that hold lesion-wise scores."""

from typing import TYPE_CHECKING

import numpy as np

from bts_lightning.metrics.policies import Floats

if TYPE_CHECKING:
    # A report reads the table of metrics and measures nothing: it need not wait for the compiler.
    from bts_lightning.metrics.masks import Masks


def lesion_dice(masks: "Masks") -> Floats:
    """Average Dice over lesions as the challenge does."""
    return masks.lesion_scores.dice


def lesion_hd95(masks: "Masks") -> Floats:
    """Average HD95 over lesions as the challenge does."""
    return masks.lesion_scores.hd95


def lesion_nsd(masks: "Masks") -> Floats:
    """Average NSD over lesions as the challenge does."""
    return masks.lesion_scores.nsd


def lesion_f1(masks: "Masks") -> Floats:
    """Count found lesions against all of truth and prediction."""
    scores = masks.lesion_scores
    both = scores.lesions + scores.found + scores.false
    return np.divide(2 * scores.found, both, out=np.full_like(both, np.nan), where=both > 0)


def lesions(masks: "Masks") -> Floats:
    """Count the lesions of the truth that are large enough to be scored."""
    return masks.lesion_scores.lesions


def found(masks: "Masks") -> Floats:
    """Count those of them that have a prediction."""
    return masks.lesion_scores.found


def false_lesions(masks: "Masks") -> Floats:
    """Count the predicted lesions that belong to none of the truth."""
    return masks.lesion_scores.false
