"""Rigid and affine registration by mutual information, from coarse to fine, from many starts."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import SimpleITK as sitk

# Edges in mm of the grids on which starts are tried, and on which the best is refined.
COARSE = 8.0
FINE = (4.0, 2.0)
# About each axis: a head that lies in the coil otherwise than the last time, or than the atlas.
TURN = math.radians(20.0)
BINS = 40
# Voxels that the metric looks at on the finest grid: more take longer and move no head by 0.1 mm.
SAMPLES = 120_000
# Millimetres of air around the moving image.
AROUND = 100.0
# So many of the best starts go on, on each grid.
KEPT = (6, 3, 1)
STEPS = 60
# How a result is pushed to see whether it comes back, degrees and mm, and how far from the middle
# of a brain its border lies.
PUSH, RADIUS = (4.0, -4.0, 4.0), 70.0


@dataclass(frozen=True)
class Registration:
    """A transform from points of the fixed image to those of the moving one.

    Attributes:
        before: mutual information in the place that the files say.
        after: mutual information once registered; both by the same measure.
        apart: mm between where this transform and one found another way put the brain, at most.
    """

    transform: sitk.Transform
    before: float
    after: float
    apart: float


def register(
    fixed: sitk.Image,
    moving: sitk.Image,
    mask: sitk.Image | None = None,
    *,
    affine: bool = False,
    start: sitk.Transform | None = None,
) -> Registration:
    """Move rigidly from many starts, or from a given one, and by an affine transform after it.

    Args:
        mask: where in the fixed image the metric looks.
    """
    coarse = _Level(fixed, moving, mask, COARSE)
    levels = [_Level(fixed, moving, mask, edge) for edge in FINE]
    before = coarse.information(sitk.Euler3DTransform())
    if affine:
        assert start is not None
        free = _freed(start)
        for level in levels:
            free = level.optimise(free, STEPS)
        return Registration(free, before, coarse.information(free), 0.0)
    centre = middle(fixed if mask is None else mask)
    best = list(_starts(centre, middle(moving)))
    for level, kept in zip((coarse, *levels), KEPT, strict=True):
        best = sorted(best, key=level.information, reverse=True)[:kept]
        best = [level.optimise(one, STEPS) for one in best]
    (found,) = best
    # Pushed away, it must come back.
    again = levels[0].optimise(_pushed(found), STEPS)
    return Registration(found, before, coarse.information(found), _apart(found, again, centre))


def composed(outer: sitk.Transform, inner: sitk.Transform) -> sitk.AffineTransform:
    """Make one affine transform of two linear ones; the inner one moves a point first."""
    points = [(0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
    zero, *axes = (np.array(outer.TransformPoint(inner.TransformPoint(p))) for p in points)
    both = sitk.AffineTransform(3)
    both.SetMatrix(np.stack([axis - zero for axis in axes], axis=1).ravel().tolist())
    both.SetTranslation(zero.tolist())
    return both


class _Level:
    """Both images on coarser grids, and the metric between them."""

    def __init__(
        self, fixed: sitk.Image, moving: sitk.Image, mask: sitk.Image | None, edge: float
    ) -> None:
        self.fixed, self.moving = isotropic(fixed, edge), isotropic(moving, edge)
        # Points without a partner do not count, so that two images would best leave each other.
        around = [math.ceil(AROUND / edge)] * 3
        self.moving = sitk.ConstantPad(self.moving, around, around, 0.0)
        self.method = method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(BINS)
        method.SetInterpolator(sitk.sitkLinear)
        if mask is not None:
            method.SetMetricFixedMask(
                sitk.Resample(mask, self.fixed, sitk.Transform(), sitk.sitkNearestNeighbor)
            )
        share = SAMPLES / math.prod(self.fixed.GetSize())
        if share < 1:
            method.SetMetricSamplingStrategy(method.RANDOM)
            method.SetMetricSamplingPercentage(share, seed=1)
        self.edge = edge

    def optimise(self, start: sitk.Transform, steps: int) -> sitk.Transform:
        method = self.method
        method.SetOptimizerAsRegularStepGradientDescent(
            learningRate=self.edge / 2,
            minStep=self.edge / 200,
            numberOfIterations=steps,
            relaxationFactor=0.6,
            gradientMagnitudeTolerance=1e-5,
        )
        method.SetOptimizerScalesFromPhysicalShift()
        found = type(start)(start)
        method.SetInitialTransform(found, inPlace=True)
        try:
            method.Execute(self.fixed, self.moving)
        except RuntimeError:
            # The images have left each other.
            return start
        return found

    def information(self, transform: sitk.Transform) -> float:
        self.method.SetInitialTransform(transform, inPlace=False)
        try:
            return -float(self.method.MetricEvaluate(self.fixed, self.moving))
        except RuntimeError:
            return 0.0


def isotropic(image: sitk.Image, edge: float) -> sitk.Image:
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
    first = [
        (count and (edge - length) / 2 / length)
        for count, length in zip(counts, spacing, strict=True)
    ]
    origin = image.TransformContinuousIndexToPhysicalPoint(first)
    return sitk.Resample(
        image, counts, sitk.Transform(), sitk.sitkLinear, origin, [edge] * 3, image.GetDirection()
    )


def _freed(rigid: sitk.Transform) -> sitk.AffineTransform:
    free, rigid = sitk.AffineTransform(3), sitk.Euler3DTransform(rigid)
    free.SetCenter(rigid.GetCenter())
    free.SetMatrix(rigid.GetMatrix())
    free.SetTranslation(rigid.GetTranslation())
    return free


def _pushed(rigid: sitk.Transform) -> sitk.Euler3DTransform:
    pushed = sitk.Euler3DTransform(rigid)
    turns, shift = pushed.GetParameters()[:3], pushed.GetParameters()[3:]
    pushed.SetParameters(
        [
            *(t + math.radians(d) for t, d in zip(turns, PUSH, strict=True)),
            *(s + d for s, d in zip(shift, PUSH[::-1], strict=True)),
        ]
    )
    return pushed


def _apart(one: sitk.Transform, other: sitk.Transform, centre: Sequence[float]) -> float:
    """Measure how far two transforms put the border of a brain from each other, mm, at most."""
    far = 0.0
    for axis in range(3):
        for sign in (-1, 1):
            point = list(centre)
            point[axis] += sign * RADIUS
            far = max(far, math.dist(one.TransformPoint(point), other.TransformPoint(point)))
    return far


def _starts(centre: Sequence[float], other: Sequence[float]) -> Iterator[sitk.Euler3DTransform]:
    """Begin where the files say, and where the middles of both heads meet, turned each way."""
    shift = [b - a for a, b in zip(centre, other, strict=True)]
    for offset in ([0.0] * 3, shift):
        for turn in product((0.0, -TURN, TURN), repeat=3):
            one = sitk.Euler3DTransform()
            one.SetCenter(centre)
            one.SetRotation(*turn)
            one.SetTranslation(offset)
            yield one


def middle(image: sitk.Image) -> Sequence[float]:
    """Give the middle of a head, or of a mask, in mm."""
    if image.GetPixelID() != sitk.sitkUInt8:
        image = isotropic(image, COARSE)
        image = sitk.OtsuThreshold(image, 0, 1)
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(image)
    return shape.GetCentroid(1)
