"""Where TorchIO's own samplers put a patch: asked for one place at a time, by a seed."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bts_lightning.data.crop import Three
from bts_lightning.data.transformed import BRAIN, seeded
from bts_lightning.errors import ConfigError

Array = NDArray[Any]
# How TorchIO says that no voxel with a chance can be the centre of a patch.
_NONE_FITS = "Empty probability map"


class TorchioSampler:
    """A place for a patch in a volume, by a sampler of TorchIO and by nothing but a seed.

    The sampler sees the label map, and the brain where it asks for it by `probability_map: brain`.
    Where a volume is smaller than the patch, it lies in the patch's middle. A tumour that cannot be
    in the middle of a patch is so in a volume with a border of half a patch, as TorchIO advises;
    the patch is then moved into the volume. A volume without any such voxel is sampled uniformly.

    Args:
        sampler: `torchio.UniformSampler`, `LabelSampler`, `WeightedSampler` or one that derives
            from them, as a factory that takes the patch's size.
    """

    def __init__(self, sampler: Callable[..., Any], patch: Three) -> None:
        self._torchio: Any = import_module("torchio")
        kind: Any = getattr(sampler, "func", sampler)
        self.name = kind.__name__
        if not issubclass(kind, import_module("torchio.data.sampler.sampler").RandomSampler):
            raise ConfigError(
                f"data.sampler is a {self.name}, which draws no patch at random; take"
                " torchio.UniformSampler, torchio.LabelSampler or torchio.WeightedSampler"
            )
        self._patch, self._sampler = patch, sampler(patch)

    def corner(self, case: str, volume: Array, truth: Array, seed: int) -> Three:
        """Draw the corner; it is negative where a smaller volume sits in the patch's middle."""
        sizes = list(zip(truth.shape, self._patch, strict=True))
        lacks = [max(0, edge - size) for size, edge in sizes]
        least = [(lack // 2, lack - lack // 2) for lack in lacks]
        half = [
            (low + edge // 2, high + edge // 2)
            for (low, high), edge in zip(least, self._patch, strict=True)
        ]
        maps = {"label": truth}
        if getattr(self._sampler, "probability_map_name", None) == BRAIN:
            maps[BRAIN] = (volume != 0).any(axis=0).view(np.uint8)
        uniform = self._torchio.UniformSampler(self._patch)
        for sampler, pads in ((self._sampler, least), (self._sampler, half), (uniform, least)):
            try:
                found = self._drawn(sampler, maps, pads, seed)
            except Exception as error:
                why = " ".join(str(error).split())
                if _NONE_FITS in why:
                    continue
                raise ConfigError(
                    f"data.sampler ({self.name}) failed on case {case}: {type(error).__name__}: "
                    f"{why}"
                ) from error
            break
        d, h, w = (
            min(max(place - low, 0), size - edge) if size > edge else -place_of_smaller
            for place, (low, _), (size, edge), (place_of_smaller, _) in zip(
                found, pads, sizes, least, strict=True
            )
        )
        return d, h, w

    def _drawn(
        self, sampler: Any, maps: dict[str, Array], pads: list[tuple[int, int]], seed: int
    ) -> list[int]:
        subject = self._torchio.Subject(
            {
                name: self._torchio.LabelMap(tensor=torch.from_numpy(np.pad(values, pads)[None]))
                for name, values in maps.items()
            }
        )
        with seeded(seed):
            (patch,) = sampler(subject, 1)
        return [int(place) for place in patch[self._torchio.LOCATION][:3]]
