"""From packed surfaces to the 95th percentile of every mask's surface distances."""

from collections import defaultdict
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from bts_lightning.metrics.surface import Floats, Ints, Words, blocks_of, search, walk
from bts_lightning.metrics.threads import in_threads, shares

Hd95 = Literal["pooled", "directed"]
Spacing = tuple[float, float, float]

# How far the walk goes before the search by blocks takes over, in mean voxel edges: some 3,000
# steps. Nearly every surface voxel of a useful prediction has met the truth by then.
REACH = 9.0
# Bounds the margin around the volume on grids with very unequal spacing.
WIDEST_HALO = 64
# With more surface voxels than this (untrained networks speckle the whole brain) three distance
# maps of the truth cost less than asking for each voxel.
DENSE = 500_000
TO_TRUTH, TO_PREDICTION = 0, 1


@dataclass(frozen=True)
class Steps:
    """All steps within reach, shortest first.

    Attributes:
        voxels: K×3.
        shells: K, the rank of each step's length.
        lengths: mm, by rank.
        halo: the margin in voxels that keeps every step inside.
    """

    voxels: Ints
    shells: Ints
    lengths: Floats
    halo: tuple[int, int, int]


@lru_cache(maxsize=16)
def outward_steps(spacing: Spacing) -> Steps:
    """List the steps to walk outward on this grid."""
    mean = float(np.prod(spacing)) ** (1 / 3)
    reach = min(REACH * mean, WIDEST_HALO * min(spacing))
    # At least one, because the sweep over face neighbours needs a margin too.
    z, y, x = (max(1, int(reach / s)) for s in spacing)
    voxels = np.indices((2 * z + 1, 2 * y + 1, 2 * x + 1)).reshape(3, -1).T - (z, y, x)
    # Summed in the order of SciPy's distance transform, so that medpy's last digit is met.
    first, second, third = ((voxels[:, axis] * spacing[axis]) ** 2 for axis in range(3))
    squares = first + second + third
    order = np.argsort(squares, kind="stable")
    order = order[squares[order] <= reach**2]
    unique, shells = np.unique(squares[order], return_inverse=True)
    return Steps(voxels[order], shells.astype(np.int64), np.sqrt(unique), (z, y, x))


def hd95_of_masks(
    surface: Words, live: NDArray[np.bool_], spacing: Spacing, definition: Hd95, threads: int
) -> Floats:
    """Measure HD95 (subsets × regions, mm) of the masks in `live`; the others become NaN.

    Args:
        surface: words with the margin of `outward_steps`; bit r·S+s is region r of prediction s,
            bit R·S+r is region r of the truth.
        live: S×R: truth and prediction both have a surface.
        spacing: millimetres along each axis.
        definition: see `score`.
        threads: how many to use.
    """
    steps = outward_steps(spacing)
    found = _measure(_Surfaces(surface, live, spacing), steps, threads)
    hd95 = np.full(live.shape, np.nan)
    for s, r in np.argwhere(live):
        bit = r * len(live) + s
        near = found.near[:, bit]
        far = [
            np.concatenate(found.far[way, bit] or [np.empty(0)])
            for way in (TO_TRUTH, TO_PREDICTION)
        ]
        if definition == "pooled":
            near, far = near.sum(axis=0, keepdims=True), [np.concatenate(far)]
        hd95[s, r] = max(
            percentile95(counts, steps.lengths, beyond)
            for counts, beyond in zip(near, far, strict=True)
        )
    return hd95


def percentile95(counts: Ints, lengths: Floats, beyond: Floats) -> float:
    """Read the percentile off a histogram and further single values, as `np.percentile` would.

    Args:
        counts: how often each of `lengths` occurs.
        lengths: rising.
        beyond: more values, in any order.
    """
    if beyond.size and beyond.min() < lengths[counts > 0].max(initial=0.0):
        # Not beyond: distance maps found short ones too.
        beyond, counts = np.concatenate([np.repeat(lengths, counts), beyond]), 0 * counts
    until = np.cumsum(counts)
    last = int(until[-1]) + beyond.size - 1
    place = last * 0.95
    low = int(place)
    high = min(low + 1, last)
    inside = int(until[-1])
    ranks = [rank - inside for rank in (low, high) if rank >= inside]
    if ranks:
        beyond = np.partition(beyond, ranks)

    def at(rank: int) -> float:
        if rank < inside:
            return float(lengths[np.searchsorted(until, rank, side="right")])
        return float(beyond[rank - inside])

    a, b, part = at(low), at(high), place - low
    # NumPy interpolates from the nearer end.
    return b - (b - a) * (1 - part) if part >= 0.5 else a + (b - a) * part


class _Surfaces:
    """The words of a case and what each bit means."""

    def __init__(self, words: Words, live: NDArray[np.bool_], spacing: Spacing) -> None:
        subsets, regions = live.shape
        self.words, self.spacing = words, spacing
        self.flat = words.reshape(-1)
        self.points: Ints = np.flatnonzero(self.flat)
        self.strides = np.array([words.shape[1] * words.shape[2], words.shape[2], 1])
        self.region_bits = _words(np.repeat(np.eye(regions, dtype=np.bool_), subsets, axis=1))
        self.truth_bits = _words(np.eye(regions, dtype=np.bool_), first=regions * subsets)
        self.live = _words(live.T.reshape(1, -1))[0]
        self.live_bits = [
            [r * subsets + s for s in range(subsets) if live[s, r]] for r in range(regions)
        ]
        self.bits = regions * subsets


@dataclass(frozen=True)
class _Found:
    """Distances by way and prediction bit: those within reach counted, those beyond one by one."""

    near: Ints
    far: dict[tuple[int, int], list[Floats]] = field(default_factory=lambda: defaultdict(list))


def _measure(case: _Surfaces, steps: Steps, threads: int) -> _Found:
    found = _Found(np.zeros((2, case.bits, steps.lengths.size), np.int64))
    allowed = ~np.uint64(0)
    if case.points.size > DENSE:
        _map_distances_to_truth(case, found, threads)
        allowed ^= np.bitwise_or.reduce(case.truth_bits)
    offsets = steps.voxels @ case.strides

    def look(share: range) -> tuple[Ints, Ints, Words, Floats]:
        counts = np.zeros_like(found.near)
        points, wanted = walk(
            case.flat,
            case.points[share.start : share.stop],
            offsets,
            steps.shells,
            case.region_bits,
            case.truth_bits,
            case.live,
            allowed,
            counts,
        )
        return counts, points, wanted, search(case.words, blocks, points, wanted, case.spacing)

    blocks = blocks_of(case.words)
    # Several shares a thread, because far points come in clusters.
    for counts, points, wanted, squares in in_threads(
        look, shares(case.points.size, 4 * threads), threads
    ):
        np.add(found.near, counts, out=found.near)
        if points.size:
            _collect(case, points, wanted, np.sqrt(squares), found)
    return found


def _map_distances_to_truth(case: _Surfaces, found: _Found, threads: int) -> None:
    def distances(region: int) -> Floats:
        away = (case.words & case.truth_bits[region]) == 0
        return distance_transform_edt(away, sampling=case.spacing).reshape(-1)[case.points]

    codes = case.flat[case.points]
    regions = [r for r, bits in enumerate(case.live_bits) if bits]
    for region, lengths in zip(regions, in_threads(distances, regions, threads), strict=True):
        for bit in case.live_bits[region]:
            found.far[TO_TRUTH, bit].append(lengths[_has(codes, bit)])


def _collect(case: _Surfaces, points: Ints, wanted: Words, lengths: Floats, found: _Found) -> None:
    codes = case.flat[points]
    for region, bits in enumerate(case.live_bits):
        truth = case.bits + region
        asked = _has(wanted, truth)
        for bit in bits:
            found.far[TO_TRUTH, bit].append(lengths[asked & _has(codes, bit), truth])
            found.far[TO_PREDICTION, bit].append(lengths[_has(wanted, bit), bit])


def _has(words: Words, bit: int) -> NDArray[np.bool_]:
    return (words >> np.uint64(bit)) & np.uint64(1) != 0


def _words(flags: NDArray[np.bool_], first: int = 0) -> Words:
    """Read each row of flags as a word whose lowest flag sits at bit `first`."""
    places = np.uint64(1) << np.arange(first, first + flags.shape[1], dtype=np.uint64)
    return np.where(flags, places, np.uint64(0)).sum(axis=1, dtype=np.uint64)
