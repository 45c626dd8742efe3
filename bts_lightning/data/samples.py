"""What a training sample is: a random patch, its mirror image, and the modalities it keeps."""

import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from math import ceil, floor, prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bts_lightning.availability import Availability, Complete
from bts_lightning.chance import generator, probability
from bts_lightning.data.crop import Three, copy_box
from bts_lightning.data.sampling import TorchioSampler
from bts_lightning.data.transform import Reach
from bts_lightning.data.transformed import without_copies
from bts_lightning.errors import ConfigError, DataError
from bts_lightning.modalities import Subset

Array = NDArray[Any]


class ReadableCase(Protocol):
    """What a patch is read from; `data.cache.CachedCase` is one."""

    @property
    def name(self) -> str: ...
    @property
    def available(self) -> Subset: ...
    @property
    def image(self) -> Array: ...
    @property
    def label(self) -> Array | None: ...
    @property
    def foreground(self) -> Array:
        """Give tumour voxels as rows of class, d, h, w, sorted by class."""

    @property
    def origin(self) -> Three:
        """Tell where the image begins in the grid of the files."""


@dataclass(frozen=True)
class Box:
    """What is read around a patch, no further than the volume goes.

    Attributes:
        corner: in the volume.
        size: edges.
        centre: of the patch in voxels from where the box begins, once both are mirrored.
    """

    corner: Three
    size: Three
    centre: Reach


@dataclass(frozen=True)
class Sample:
    """What chance decided for one sample, and the maps to read it from.

    Attributes:
        place: of the patch in the grid of the files, for each axis; see `Features.place`.
    """

    case: str
    available: Subset
    present: Subset
    seed: int
    corner: Three
    flips: tuple[bool, bool, bool]
    volume: Array
    truth: Array
    place: tuple[tuple[int, int], ...]
    around: "Box | None" = None

    def fill(
        self,
        image: Array,
        label: Array,
        around: tuple[Array, Array] | None = None,
        transform: Callable[[Array, Array, Subset, int, str], None] | None = None,
    ) -> None:
        """Write the sample over `image` 4×D×H×W and `label` D×H×W, usually rows of a batch.

        A sample that has a box around it is that box, which goes to the two arrays of `around`; the
        transforms run there, and the row keeps the bare patch.
        """
        try:
            sizes = zip(self.corner, label.shape, self.truth.shape, strict=True)
            if any(corner < 0 or corner + edge > size for corner, edge, size in sizes):
                image[...] = 0
                label[...] = 0
            self.copy(image, label, self.corner)
            if self.around is not None and around is not None:
                image, label = around
                self.copy(image, label, self.around.corner)
        except Exception as error:
            error.add_note(f"while reading a patch of case {self.case}")
            raise
        if transform:
            place = f"the patch at {self.corner} of case {self.case}"
            transform(image, label, self.available, self.seed, place)

    def copy(self, image: Array, label: Array, corner: Three) -> None:
        """Read the box at `corner`, as large as the label."""
        copy_box(label[None], self.truth[None], corner, self.flips)
        if all(self.available):
            copy_box(image, self.volume, corner, self.flips)
            return
        for channel, is_available in enumerate(self.available):
            one = slice(channel, channel + 1)
            if is_available:
                copy_box(image[one], self.volume[one], corner, self.flips)
            else:
                image[one] = 0


class PatchDataset:
    """Draw random patches; a sample is a function of (seed, epoch, index) and of nothing else.

    Cases come in shuffled rounds that run on across epochs, so over a training no case is seen more
    than once more often than another, whatever the length of an epoch.

    Args:
        cases: labelled cases, any order.
        samples: samples of an epoch; by default one for each case.
        patch: edge length, or one length for each axis; what a volume lacks is zero around it.
        foreground: probability to centre the patch on a tumour voxel, its class drawn first.
        flip: probability to mirror each axis.
        sampler: draws the place of a patch, in place of our own rule.
        transforms: TorchIO transforms by name, applied in this order to each patch.
        reach: tells from a sample's seed how far around its centre it must be read; None: as far as
            the patch goes.
    """

    def __init__(
        self,
        cases: Sequence[ReadableCase],
        *,
        samples: int | None = None,
        patch: int | Sequence[int] = 128,
        seed: int = 0,
        foreground: float = 0.0,
        flip: float = 0.5,
        availability: Availability | None = None,
        sampler: TorchioSampler | None = None,
        transforms: Mapping[str, Any] | None = None,
        reach: Callable[[int, Three], Reach | None] | None = None,
    ) -> None:
        if not cases:
            raise DataError("there is no case to train on; a training case needs a label map")
        # The order of a folder listing must not decide which case a sample shows.
        self.cases = sorted(cases, key=lambda case: case.name)
        self.samples = len(cases) if samples is None else samples
        self.patch = triple(patch)
        self.seed = seed
        self.foreground = probability("foreground", foreground)
        self.flip = probability("flip", flip)
        self.availability = availability or Complete()
        self._sampler = sampler
        self.transforms = {
            name: without_copies(each)
            for name, each in (transforms or {}).items()
            if each is not None
        }
        self.reach = reach
        # Not a method: a cycle of references would keep the files open after the data set is gone.
        self._open = lru_cache(_cases_to_hold())(partial(_opened, self.cases))

    def __len__(self) -> int:
        return self.samples

    def largest(self) -> int:
        """Count the voxels of the largest volume or patch: no box is larger."""
        return max(prod(self.patch), *(prod(case.image.shape[1:]) for case in self.cases))

    def case_of(self, epoch: int, index: int) -> ReadableCase:
        """Tell which case a sample shows."""
        return self.cases[self._number_of(epoch, index)]

    def draw(self, epoch: int, index: int) -> Sample:
        """Decide a sample and open its case, but read no voxel."""
        number = self._number_of(epoch, index)
        case = self.cases[number]
        available = self.availability.has(case.name, case.available)
        volume, truth = self._open(number)
        d, h, w = (generator(self.seed, epoch, index, "flip").random(3) < self.flip).tolist()
        # 63 bits, because torch generators take a signed number.
        seed = int(generator(self.seed, epoch, index, "augment").integers(2**63 - 1))
        size = volume.shape[1:]
        chance = generator(self.seed, epoch, index, "crop")
        if self._sampler is None:
            corner = self._corner(case, size, chance)
        else:
            place = int(chance.integers(2**63 - 1))
            corner = self._sampler.corner(case.name, volume, truth, place)
        reach = self.reach(seed, self.patch) if self.reach else None
        starts = zip(case.origin, corner, self.patch, (d, h, w), strict=True)
        return Sample(
            case=case.name,
            available=available,
            present=self.availability.draw(available, self.seed, epoch, index),
            seed=seed,
            corner=corner,
            flips=(d, h, w),
            volume=volume,
            truth=truth,
            place=tuple((o + c + n - 1, -1) if flip else (o + c, 1) for o, c, n, flip in starts),
            around=reach and _box_around(corner, self.patch, reach, size, (d, h, w)),
        )

    def _number_of(self, epoch: int, index: int) -> int:
        turn, place = divmod(epoch * self.samples + index, len(self.cases))
        return int(_shuffled(self.seed, turn, len(self.cases))[place])

    def _corner(
        self, case: ReadableCase, size: Sequence[int], chance: np.random.Generator
    ) -> Three:
        """Draw the corner of the patch; negative where a smaller volume sits in its middle."""
        room = [n - p for n, p in zip(size, self.patch, strict=True)]
        d, h, w = (int(chance.integers(r + 1)) if r > 0 else -(-r // 2) for r in room)
        if chance.random() >= self.foreground or not len(voxels := case.foreground):
            return d, h, w
        # The class first, as nnU-Net does, or the small ones would hardly ever be drawn.
        edges = np.unique(np.searchsorted(voxels[:, 0], (1, 2, 3, 4)))
        which = chance.integers(len(edges) - 1)
        centre = voxels[chance.integers(edges[which], edges[which + 1]), 1:]
        d, h, w = (
            min(max(int(v) - p // 2, 0), r) if r > 0 else c
            for v, p, r, c in zip(centre, self.patch, room, (d, h, w), strict=True)
        )
        return d, h, w


def triple(patch: int | Sequence[int]) -> Three:
    """Read a patch size: one edge for all axes or one for each."""
    sizes = (patch,) * 3 if isinstance(patch, int) else tuple(patch)
    if len(sizes) != 3 or any(size < 1 for size in sizes):
        raise ConfigError(f"patch is {patch}; give one edge length, or three: [D, H, W]")
    return sizes


def _box_around(
    corner: Three, patch: Three, reach: Reach, size: Sequence[int], flips: Sequence[bool]
) -> Box | None:
    """Give the part of the volume that the reach covers, or None where the patch holds it all."""
    spans = [
        (min(max(floor(c + p / 2 - r), 0), n - 1), max(min(ceil(c + p / 2 + r), n), 1))
        for c, p, r, n in zip(corner, patch, reach, size, strict=True)
    ]
    places = list(zip(spans, corner, patch, strict=True))
    if all(low >= c and high <= c + p for (low, high), c, p in places):
        return None
    d, h, w = (
        high - (c + p / 2) if flipped else c + p / 2 - low
        for ((low, high), c, p), flipped in zip(places, flips, strict=True)
    )
    (d0, d1), (h0, h1), (w0, w1) = spans
    return Box((d0, h0, w0), (d1 - d0, h1 - h0, w1 - w0), (d, h, w))


def _opened(cases: Sequence[ReadableCase], number: int) -> tuple[Array, Array]:
    case = cases[number]
    try:
        image, label = case.image, case.label
    except (OSError, ValueError) as error:
        raise DataError(
            f"case {case.name}: its cached volume cannot be read ({error}); prepare it again"
        ) from error
    if label is None:
        raise DataError(f"case {case.name} has no label map, so it cannot train")
    return image, label


def _cases_to_hold() -> int:
    """Say how many cases may stay open: mapping one anew takes a third of the time of a patch.

    Each holds two file handles; a third of those that are still free is left to others.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return 4096
    in_use = sum(1 for _ in Path("/dev/fd").iterdir())  # Linux and macOS have it
    return max(1, (limit - in_use) // 3)


@lru_cache(maxsize=4)
def _shuffled(seed: int, turn: int, count: int) -> Array:
    return generator(seed, turn, "order").permutation(count)
