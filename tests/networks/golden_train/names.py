"""Which parameter of ours is which official one in a recorded training."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from bts_lightning.networks.official.table import Place, read_table
from tests.networks import golden_a2fseg, golden_amoe_bts, golden_mmformer, golden_rfnet

LAYOUTS = {
    "RFNet": ("rfnet", golden_rfnet.salt),
    "mmFormer": ("mmformer", golden_mmformer.salt),
    "AMoE-BTS": ("amoe_bts", golden_amoe_bts.salt),
    "A2FSeg": ("a2fseg", golden_a2fseg.salt),
}


class Layout:
    """How the official parameters of a network map onto ours; images stay as they were recorded.

    Args:
        network: its name in the file.
        ours: the names of our parameters.
    """

    def __init__(self, network: str, ours: Iterable[str]) -> None:
        table, salt = LAYOUTS[network]
        self.salt: Callable[[str], int] = salt
        self.places: dict[str, Place] = replace(read_table(table), axes="xyz").places(ours)

    def rename(self, official: str) -> tuple[str, ...]:
        """Give our names, several where ours are parts, none where ours leaves it out."""
        return tuple(name for name, place in self.places.items() if place.name == official)

    def put(self, official: Tensor, names: tuple[str, ...], into: dict[str, Tensor]) -> None:
        """Write an official tensor into parameters of ours."""
        for name in names:
            into[name].copy_(self.places[name].take(official).reshape(into[name].shape))

    def take(self, names: tuple[str, ...], ours: dict[str, Tensor]) -> Tensor:
        """Read an official tensor, flat, from ours."""
        shape = self.places[names[0]].shape(ours[names[0]].shape)
        official = ours[names[0]].new_empty(shape).flatten()
        index = torch.arange(len(official)).reshape(shape)
        for name in names:
            official[self.places[name].take(index).flatten()] = ours[name].flatten()
        return official
