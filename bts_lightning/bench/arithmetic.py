"""Count the arithmetic of encoders and decoders."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from bts_lightning.modalities import MODALITIES, SUBSETS
from bts_lightning.networks.backbone import Backbone


@dataclass(frozen=True)
class Cost:
    """GFLOP of one window: encoders, decoder for one subset, and for all 15 as we decode them."""

    encode: float
    decode: float
    decode_all: float

    @property
    def once(self) -> float:
        """Of one pass, with all modalities."""
        return self.encode + self.decode

    def loop(self, *, skips_absent: bool = False) -> float:
        """Of a whole pass for each subset, with the encoders of all modalities or the subset's."""
        shown = sum(map(sum, SUBSETS)) / len(MODALITIES) if skips_absent else len(SUBSETS)
        return shown * self.encode + len(SUBSETS) * self.decode

    def reuse_bound(self, *, skips_absent: bool = False) -> float:
        """Give how much faster than that loop it may become by encoding once."""
        naive = self.loop(skips_absent=skips_absent)
        return naive / (self.encode + len(SUBSETS) * self.decode)

    def ours_bound(self, *, skips_absent: bool = False) -> float:
        """Give the same for what we really compute."""
        return self.loop(skips_absent=skips_absent) / (self.encode + self.decode_all)


def count(make: Callable[[], Backbone], window: int, device: torch.device | None = None) -> Cost:
    """Count the convolutions and matrix products of one window for the network that `make` gives.

    Tensors without content will do, but for networks whose work for many subsets depends on which
    they are: those run on a device.
    """
    with torch.device("meta"):
        net = make().eval()
    where = torch.device("meta")
    if net.shares_decoding and device is not None:
        where, net = device, make().to(device).eval()
    image = torch.zeros(1, 4, *[window] * 3, device=where)
    present = torch.ones(1, 4, dtype=torch.bool, device=where)
    subsets = torch.tensor(SUBSETS, device=where)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        features = net.encode(image, present)
        encode = counter.get_total_flops()
        net.decode(features)
        decode = counter.get_total_flops() - encode
        net.decode_subsets(features, subsets)
        decode_all = counter.get_total_flops() - encode - decode
    return Cost(encode / 1e9, decode / 1e9, decode_all / 1e9)
