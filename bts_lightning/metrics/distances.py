"""From packed surfaces to the distances between every prediction's and the truth's."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from bts_lightning.metrics.surface import Floats, Ints, Words
from bts_lightning.metrics.threads import in_threads, shares
from bts_lightning.metrics.to_predictions import blocks_of, search, walk, with_neighbours
from bts_lightning.metrics.to_truth import asked_rows, gather, map_planes

Spacing = tuple[float, float, float]

# How far the walk goes before the search by blocks takes over, in mean voxel edges: some 3,000
# steps. Nearly every voxel of the truth's surface has met a useful prediction by then.
REACH = 9.0
# Bounds the margin around the volume on grids with very unequal spacing.
WIDEST_HALO = 64


@dataclass(frozen=True)
class Steps:
    """All steps within reach, shortest first.

    Attributes:
        voxels: K×3.
        lengths: K, squared.
        halo: the margin in voxels that keeps every step inside.
    """

    voxels: Ints
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
    # Summed in the order of SciPy's map, here and elsewhere, so that medpy's last digit is met.
    first, second, third = ((voxels[:, axis] * spacing[axis]) ** 2 for axis in range(3))
    lengths = first + second + third
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] <= reach**2]
    return Steps(voxels[order], lengths[order], (z, y, x))


def surface_distances(
    surface: Words,
    points: Ints,
    live: NDArray[np.bool_],
    spacing: Spacing,
    threads: int,
) -> dict[tuple[int, int], tuple[Floats, Floats]]:
    """Measure squared distances from prediction to truth and back, for each mask in `live`.

    Args:
        surface: words with the margin of `outward_steps`; bit r·S+s is region r of prediction s,
            bit R·S+r is region r of the truth.
        points: flat positions of the words that are not zero.
        live: S×R: truth and prediction both have a surface.
        spacing: millimetres along each axis.
        threads: how many to use.
    """
    subsets, regions = live.shape
    live_bits = _words(live.T.reshape(1, -1))[0]
    region_bits = _words(np.repeat(np.eye(regions, dtype=np.bool_), subsets, axis=1)) & live_bits
    truth_bits = _words(np.eye(regions, dtype=np.bool_), first=regions * subsets)
    there = [
        _distances_to_truth(surface, points, truth, bits, spacing, threads) if bits else {}
        for truth, bits in zip(truth_bits, region_bits, strict=True)
    ]
    back = _distances_to_predictions(surface, points, truth_bits, region_bits, spacing, threads)
    pairs = [(int(s), int(r)) for s, r in np.argwhere(live)]
    return {(s, r): (there[r][r * subsets + s], back[r * subsets + s]) for s, r in pairs}


def _distances_to_truth(
    surface: Words,
    points: Ints,
    truth: np.uint64,
    bits: np.uint64,
    spacing: Spacing,
    threads: int,
) -> dict[int, Floats]:
    """Give the squared distances of each of these prediction bits to one region of the truth."""
    # From here on, a corner of the volume without the margin, on the truth's first plane.
    halo = outward_steps(spacing).halo
    _, height, width = (n - 2 * h for n, h in zip(surface.shape, halo, strict=True))
    words = surface.reshape(-1)[points]
    planes = points[words & truth != 0][[0, -1]] // (surface.shape[1] * surface.shape[2])
    depth, corner = int(planes[1] - planes[0]) + 1, (int(planes[0]), halo[1], halo[2])
    points = points[words & bits != 0]
    asked = asked_rows(points, surface.shape, corner, (height, width))
    truth_map = (
        np.empty((depth, height, width)),
        np.empty((depth, height), np.bool_),
        np.empty((depth, height, width)),
    )
    in_threads(
        lambda z: map_planes(surface, truth, corner, spacing, z.start, z.stop, asked, *truth_map),
        shares(depth, 4 * threads),
        threads,
    )
    found = in_threads(
        lambda some: gather(
            surface, points[some.start : some.stop], bits, corner, spacing, *truth_map
        ),
        shares(points.size, threads),
        threads,
    )
    return {
        bit: np.concatenate([squares[starts[bit] : starts[bit + 1]] for squares, starts in found])
        for bit in range(64)
        if bits >> np.uint64(bit) & np.uint64(1)
    }


def _distances_to_predictions(
    surface: Words,
    points: Ints,
    truth_bits: Words,
    region_bits: Words,
    spacing: Spacing,
    threads: int,
) -> dict[int, Floats]:
    """Give the squared distances of the truth's surface to each prediction bit."""
    words = surface.reshape(-1)[points]
    wanted = np.zeros_like(words)
    for truth, bits in zip(truth_bits, region_bits, strict=True):
        wanted |= np.where(words & truth, bits, np.uint64(0))
    points, wanted = points[wanted != 0], wanted[wanted != 0]
    steps = outward_steps(spacing)
    flat_steps = steps.voxels @ (surface.shape[1] * surface.shape[2], surface.shape[2], 1)
    blocks = blocks_of(surface)
    around = with_neighbours(blocks)
    bits = [b for b in range(64) if (wanted >> np.uint64(b) & np.uint64(1)).any()]
    best = np.empty((max(bits, default=0) + 1, points.size))

    def look(some: range) -> None:
        mine = slice(some.start, some.stop)
        left = walk(
            surface, around, points[mine], wanted[mine], flat_steps, steps.lengths, best[:, mine]
        )
        search(surface, blocks, points[mine], left, spacing, best[:, mine])

    # Several shares a thread, because far points come in clusters.
    in_threads(look, shares(points.size, 4 * threads), threads)
    return {b: best[b][wanted >> np.uint64(b) & np.uint64(1) != 0] for b in bits}


def _words(flags: NDArray[np.bool_], first: int = 0) -> Words:
    """Read each row of flags as a word whose lowest flag sits at bit `first`."""
    places = np.uint64(1) << np.arange(first, first + flags.shape[1], dtype=np.uint64)
    return np.where(flags, places, np.uint64(0)).sum(axis=1, dtype=np.uint64)
