"""A2FSeg: adaptive attention over modalities, in the paper's forms and the code's."""

from bts_lightning.networks.a2fseg.network import A2FSeg

__all__ = ["A2FSeg"]
