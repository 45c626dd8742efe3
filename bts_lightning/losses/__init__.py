"""What a network learns from: losses of segmentations, and how their gradients are put together."""

from bts_lightning.losses.segmentation import (
    LabelLoss,
    RegionLoss,
    SegmentationLoss,
    SeparateLabelLoss,
    over_ranks,
    regions_of,
    shrunk,
)

__all__ = [
    "LabelLoss",
    "RegionLoss",
    "SegmentationLoss",
    "SeparateLabelLoss",
    "over_ranks",
    "regions_of",
    "shrunk",
]
