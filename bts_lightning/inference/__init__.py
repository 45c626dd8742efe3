"""Segment a whole case in all subsets of its modalities, with one pass of the encoders."""

from bts_lightning.inference.clock import Clock
from bts_lightning.inference.importance import Importance
from bts_lightning.inference.protocol import Protocol
from bts_lightning.inference.sliding import each_subset, label_map, segment

__all__ = ["Clock", "Importance", "Protocol", "each_subset", "label_map", "segment"]
