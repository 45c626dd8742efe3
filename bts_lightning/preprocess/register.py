"""Rigid and affine registration by mutual information: from many starts, coarse to fine."""

import math
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import permutations, product
from typing import Literal

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import optimize

from bts_lightning.preprocess.joint import count_together

# Turns in radians, shifts in mm, the logarithms of a scale and of two stretches, three shears.
Params = NDArray[np.float64]
Freedom = Literal["rigid", "scaled", "affine"]
FREE: dict[Freedom, int] = {"rigid": 6, "scaled": 7, "affine": 12}

# Edges in mm of the grids, and how many points at most the finest are compared at.
EDGES = (8.0, 4.0, 2.0)
MOST_POINTS = 30_000
BINS = 24
# About the axes to the left, to the back and up: heads nod most, and planes are tilted.
TURNS = ((0.0, 0.25, -0.25, 0.5, -0.5), (0.0, 0.3, -0.3), (0.0, 0.3, -0.3))
# A neck draws the middle of a head down by as much, mm.
NECKS = (0.0, 30.0)
# So many starts are refined on the coarse grid, so many results on the next.
REFINED, KEPT = 6, 2
# A brain's volume beside the ICBM's 1.9 l: where the search begins, and its ends.
SCALE, LEAST_VOLUME, MOST_VOLUME = 0.93, 0.47, 1.06
# A step of the search on the coarse grid.
UNITS = np.array([0.1] * 3 + [8.0] * 3 + [0.05] * 6)
# A head turned by right angles, mirrored or both, in all ways; of those so many are looked at.
WAYS_ROUND = [
    np.eye(3)[list(order)] * signs
    for order in permutations(range(3))
    for signs in product((1, -1), repeat=3)
][1:]
RIVALS = 3
# How a result is pushed to see whether it comes back, in steps, and how far from the middle of a
# brain its border lies, mm.
PUSH, RADIUS = np.array([0.7, -0.7, 0.7, 0.7, 0.7, -0.7] + [0.0] * 6), 70.0


@dataclass(frozen=True)
class Registration:
    """A transform from points of the fixed image to those of the moving one.

    Attributes:
        before: mutual information in the place that the files say, bits.
        after: mutual information once registered; both by the same measure.
        apart: mm between where this transform and one found another way put the brain, at most.
        bent: mm likewise, when the moving image may be stretched as well; an atlas is not asked.
        rival: how well the moving image fits the other way round, beside how well it fits so.
        fitted: the affine transform of an atlas, which makes the mask alone.
    """

    transform: sitk.AffineTransform
    before: float
    after: float
    apart: float
    bent: float
    rival: float
    fitted: sitk.AffineTransform | None = None


def register(fixed: sitk.Image, moving: sitk.Image, mask: sitk.Image, axes: Params) -> Registration:
    """Move one scan rigidly onto another.

    Args:
        mask: where in the fixed image they are compared.
        axes: of the head in the fixed image, as columns.
    """
    coarse = _Level(fixed, moving, mask, EDGES[0])
    fine, finest = (_Level(fixed, moving, mask, edge, coarse.centre) for edge in EDGES[1:])
    found = finest.refined(_best(coarse, fine, "rigid"), "rigid")
    ways = [axes @ way @ np.linalg.inv(axes) for way in WAYS_ROUND]
    return _judged(coarse, fine, found, "rigid", ways)


def register_atlas(
    head: sitk.Image, moving: sitk.Image, seen: sitk.Image, near: sitk.Image
) -> Registration:
    """Move an atlas onto a head: its place and size by the whole head, then by the brain.

    Args:
        seen: where in the atlas all heads are alike.
        near: its brain and the rim.
    """
    coarse = _Level(head, moving, seen, EDGES[0])
    fine, finest = (_Level(head, moving, near, edge, coarse.centre) for edge in EDGES[1:])
    placed = finest.refined(_best(coarse, fine, "scaled"), "scaled")
    # A template is as good as symmetric: mirrored it fits as well.
    turned = [way for way in WAYS_ROUND if np.linalg.det(way) > 0]
    judged = _judged(coarse, fine, placed, "scaled", turned)
    fitted = fine.refined(placed, "affine")
    rigid = np.where(np.arange(len(placed)) < FREE["rigid"], placed, 0.0)
    return Registration(
        *(coarse.transform(rigid), judged.before, judged.after, judged.apart, judged.bent),
        *(judged.rival, coarse.transform(fitted)),
    )


def composed(outer: sitk.Transform, inner: sitk.Transform) -> sitk.AffineTransform:
    """Make one affine transform of two linear ones; the inner one moves a point first."""
    points = [(0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
    zero, *axes = (np.array(outer.TransformPoint(inner.TransformPoint(p))) for p in points)
    both = sitk.AffineTransform(3)
    both.SetMatrix(np.stack([axis - zero for axis in axes], axis=1).ravel().tolist())
    both.SetTranslation(zero.tolist())
    return both


class _Level:
    """Points of the fixed image, and the moving image, on grids of one edge.

    Args:
        centre: about which is turned; the same one at all levels, so that parameters mean the same.
    """

    def __init__(
        self,
        fixed: sitk.Image,
        moving: sitk.Image,
        mask: sitk.Image,
        edge: float,
        centre: NDArray[np.float64] | None = None,
    ) -> None:
        few, small = _isotropic(fixed, edge), _isotropic(moving, edge)
        inside = sitk.Resample(mask, few, sitk.Transform(), sitk.sitkNearestNeighbor)
        index = np.argwhere(sitk.GetArrayViewFromImage(inside) > 0)
        if len(index) > MOST_POINTS:
            some = np.random.default_rng(0).choice(len(index), MOST_POINTS, replace=False)
            # In order, so that neighbours are read together.
            index = index[np.sort(some)]
        points = (index[:, ::-1] @ _axes(few).T) + few.GetOrigin()
        self.centre = points.mean(axis=0) if centre is None else centre
        self.points = points - self.centre
        self.fixed = np.rint(_binned(sitk.GetArrayViewFromImage(few)[tuple(index.T)])).astype(
            np.intp
        )
        self.moving = _binned(sitk.GetArrayFromImage(small).transpose(2, 1, 0))
        self.to_index, self.origin = np.linalg.inv(_axes(small)), np.array(small.GetOrigin())
        self.middle = _middle(small)
        self.units = UNITS * edge / EDGES[0]

    def refined(self, start: Params, freedom: Freedom) -> Params:
        """Go uphill from a start."""
        count = FREE[freedom]

        def loss(steps: Params) -> float:
            params = start.copy()
            params[:count] += steps * self.units[:count]
            return self.loss(params)

        found = optimize.minimize(
            loss,
            np.zeros(count),
            method="Powell",
            options={"xtol": 0.05, "ftol": 1e-5, "maxfev": 100 * count},
        )
        params = start.copy()
        params[:count] += found.x * self.units[:count]
        return params

    def round(self, way: Params) -> "_Level":
        """Turn, and perhaps mirror, the fixed image about its middle."""
        other = copy(self)
        other.points = self.points @ way.T
        return other

    def loss(self, params: Params) -> float:
        """Turn agreement into what becomes less; volumes that no brain has cost."""
        volume = float(3 * params[6] + params[7] + params[8])
        beyond = max(0.0, volume - math.log(MOST_VOLUME), math.log(LEAST_VOLUME) - volume)
        # Normalised (Studholme 1999): the plain one grows with what an atlas is stretched over.
        return 3.0 * beyond - self._agreement(params)[1]

    def information(self, params: Params) -> float:
        """Measure mutual information, bits."""
        return self._agreement(params)[0]

    def _agreement(self, params: Params) -> tuple[float, float]:
        """Measure mutual information, plain and normalised; around the moving image is air."""
        turn = self.to_index @ _matrix(params)
        shift = self.to_index @ (self.centre + params[3:6] - self.origin)
        joint = np.zeros((BINS, BINS + 1))
        count_together(self.fixed, self.points @ turn.T + shift, self.moving, joint)
        joint /= len(self.points)
        both = _entropy(joint)
        alone = _entropy(joint.sum(axis=0)) + _entropy(joint.sum(axis=1))
        return alone - both, alone / both

    def transform(self, params: Params) -> sitk.AffineTransform:
        """Make a transform of parameters."""
        made = sitk.AffineTransform(3)
        made.SetCenter(self.centre.tolist())
        made.SetMatrix(_matrix(params).ravel().tolist())
        made.SetTranslation(params[3:6].tolist())
        return made


def _best(coarse: _Level, fine: _Level, freedom: Freedom) -> Params:
    """Try many starts on the coarse grid, and the few best places on the next one."""
    ranked = sorted(_starts(coarse, freedom), key=coarse.loss)[:REFINED]
    kept: list[Params] = []
    for one in sorted((coarse.refined(start, freedom) for start in ranked), key=coarse.loss):
        if all(np.abs((one - other) / UNITS).max() > 1 for other in kept):
            kept.append(one)
    return min((fine.refined(one, freedom) for one in kept[:KEPT]), key=fine.loss)


def _starts(level: _Level, freedom: Freedom) -> Iterator[Params]:
    """Begin where the files say, and where the middles of both heads meet, turned each way."""
    shift = level.middle - level.centre
    scale = 0.0 if freedom == "rigid" else math.log(SCALE)
    necks = NECKS if freedom == "scaled" else NECKS[:1]
    for offset in (np.zeros(3), *(shift + np.array((0, 0, neck)) for neck in necks)):
        for turns in product(*TURNS):
            yield np.array([*turns, *offset, scale, *[0.0] * 5])


def _judged(
    coarse: _Level, fine: _Level, found: Params, freedom: Freedom, ways: Sequence[Params]
) -> Registration:
    """Look whether a result that is pushed away comes back, and whether another one is better."""
    again = fine.refined(found + PUSH * UNITS, freedom)
    # A scan with wrong voxels would be stretched; an atlas may be.
    free = fine.refined(again, "affine") if freedom == "rigid" else again
    return Registration(
        *(coarse.transform(found), coarse.information(np.zeros(len(found)))),
        *(coarse.information(found), _apart(fine, found, again), _apart(fine, found, free)),
        _rival(coarse, fine, found, freedom, ways) / (-fine.loss(found) - 1),
    )


def _apart(level: _Level, one: Params, other: Params) -> float:
    """Measure mm between where two transforms put the brain's border, at most."""
    ways = [level.transform(params) for params in (one, other)]
    ends = [(level.centre + RADIUS * end).tolist() for end in (*np.eye(3), *-np.eye(3))]
    return max(math.dist(*(way.TransformPoint(end) for way in ways)) for end in ends)


def _rival(
    coarse: _Level, fine: _Level, found: Params, freedom: Freedom, ways: Sequence[Params]
) -> float:
    """Measure how well the moving image fits in the best of other ways round; at least 0."""
    starts = [found + np.pad(turns, (0, len(found) - 3)) for turns in product(*TURNS)]
    tried = ((coarse.round(way), way, start) for way in ways for start in starts)
    ranked = sorted(tried, key=lambda one: one[0].loss(one[2]))[:RIVALS]
    refined = [(level, way, level.refined(start, freedom)) for level, way, start in ranked]
    _, way, start = min(refined, key=lambda one: one[0].loss(one[2]))
    rival = fine.round(way)
    return -rival.loss(rival.refined(start, freedom)) - 1


def _entropy(shares: NDArray[np.float64]) -> float:
    there = shares[shares > 0]
    return float(-(there * np.log2(there)).sum())


def _matrix(params: Params) -> NDArray[np.float64]:
    (a, b, c), (scale, wide, long, *shears) = params[:3], params[6:]
    turn = sitk.Euler3DTransform()
    turn.SetRotation(float(a), float(b), float(c))
    stretched = np.diag(np.exp([scale + wide, scale + long, scale]))
    stretched[np.triu_indices(3, 1)] = shears
    return np.reshape(turn.GetMatrix(), (3, 3)) @ stretched


def _isotropic(image: sitk.Image, edge: float) -> sitk.Image:
    """Smooth and sample an image at one edge for all axes."""
    spacing, size = image.GetSpacing(), image.GetSize()
    for axis, length in enumerate(spacing):
        if length < 0.75 * edge:
            smooth = sitk.RecursiveGaussianImageFilter()
            smooth.SetDirection(axis)
            smooth.SetSigma(0.45 * math.sqrt(edge**2 - length**2))
            image = smooth.Execute(image)
    counts = [max(1, round(n * length / edge)) for n, length in zip(size, spacing, strict=True)]
    # The same field of view: its first corner stays, not its first centre.
    first = [(edge - length) / 2 / length for length in spacing]
    origin = image.TransformContinuousIndexToPhysicalPoint(first)
    return sitk.Resample(
        image, counts, sitk.Transform(), sitk.sitkLinear, origin, [edge] * 3, image.GetDirection()
    )


def _middle(image: sitk.Image) -> NDArray[np.float64]:
    """Give the middle of a head in mm."""
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(sitk.OtsuThreshold(image, 0, 1))
    return np.array(shape.GetCentroid(1))


def _axes(image: sitk.Image) -> NDArray[np.float64]:
    return np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()


def _binned(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Spread values over bins, the few brightest in the last one."""
    low, high = np.percentile(values, (0, 99.5))
    return np.clip((values - low) / max(high - low, 1e-6), 0, 1) * (BINS - 1)
