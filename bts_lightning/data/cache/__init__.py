"""A data set as arrays that are read from the memory map: built once, shared by all processes."""

from bts_lightning.data.cache.cached_case import CachedCase
from bts_lightning.data.cache.prepare import build, fingerprint, prepare

__all__ = ["CachedCase", "build", "fingerprint", "prepare"]
