"""Gliomas for the phantom: necrosis in an enhancing rim, oedema along white matter, cavities."""

from dataclasses import dataclass, replace

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from bts_lightning.data.phantom.anatomy import STEP, Atlas, Tissues, move, sample
from bts_lightning.data.phantom.space import (
    FULL_SIZE,
    Array,
    Box,
    Grid,
    box_on,
    control_grid,
    interpolate,
    smooth_noise,
)
from bts_lightning.modalities import CAVITY, ENHANCING, NECROSIS, OEDEMA

# Control points of the arrival time of oedema, mm: fine enough for fingers of 4 mm.
FRONT_STEP = 2.0


@dataclass(frozen=True)
class Lesion:
    """One focus: where it lies (mm), its radius and the shape of its ellipsoid."""

    centre: NDArray[np.float64]
    radius: float
    axes: NDArray[np.float64]  # 3×3: maps mm around the centre to a unit sphere times the radius


@dataclass(frozen=True)
class Tumour:
    """What distinguishes one patient's disease from the next one's.

    Attributes:
        lesions: largest first.
        enhances: false for a low-grade tumour, whose core is all non-enhancing.
        rim: typical thickness of the enhancing rim, mm.
        reach: how far oedema runs in white matter, mm.
        pressure: share of the core's volume that pushes tissue aside rather than replacing it.
        cavity: what a surgeon has taken out, if anything.
    """

    lesions: tuple[Lesion, ...]
    enhances: bool
    rim: float
    reach: float
    pressure: float
    cavity: "Cavity | None" = None


@dataclass(frozen=True)
class Cavity:
    """The part of the first focus that lies on one side, up to a wall, is gone: fluid fills it."""

    side: NDArray[np.float64]  # a unit vector: from the centre to where most was taken
    beyond: float  # how far past the centre the other way the knife went, mm
    wall: float  # tumour left along the border, mm


@dataclass(frozen=True)
class Compartments:
    """Soft membership of each voxel of a box (inside the tissues' box), and the label map.

    `fading` is how dilute oedema is: 0 at the core, 1 at its border.
    """

    box: Box
    core: Array
    enhancing: Array
    oedema: Array
    fading: Array
    cavity: Array | None
    label: NDArray[np.uint8]  # tissues


def draw_tumour(rng: np.random.Generator, warp: Array, atlas: Atlas) -> Tumour:
    """Draw a patient's disease: mostly one enhancing focus in the white matter of the cerebrum."""
    enhances = bool(rng.uniform() > 0.1)
    foci = int(rng.choice([1, 2, 3], p=[0.78, 0.15, 0.07]))
    places = _possible_places(warp, atlas)
    first = places[rng.integers(len(places))]
    lesions: list[Lesion] = []
    for focus in range(foci):
        # A median of some 30 ml, as the cores of BraTS; satellites are smaller and nearby.
        radius = float(np.clip(np.exp(rng.normal(np.log(20), 0.25)), 13, 29))
        centre = first
        if focus:
            radius *= rng.uniform(0.3, 0.55)
            away = np.linalg.norm(places - first, axis=1)
            near = places[(away > lesions[0].radius + radius + 3) & (away < lesions[0].radius + 45)]
            if not len(near):
                break
            centre = near[rng.integers(len(near))]
        stretch = np.exp(rng.normal(0, 0.18, 3).clip(-0.35, 0.35))
        turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        axes = (turn * (stretch / np.prod(stretch) ** (1 / 3))) @ turn.T
        lesions.append(Lesion(centre.astype(np.float64), radius, axes))
    return Tumour(
        lesions=tuple(lesions),
        enhances=enhances,
        rim=float(rng.uniform(2.8, 6.5)),
        reach=float(np.clip(np.exp(rng.normal(np.log(19), 0.3)), 10, 25))
        * (1 if enhances else 0.9),
        pressure=float(rng.uniform(0.1, 0.55)),
    )


def operate(rng: np.random.Generator, tumour: Tumour) -> Tumour:
    """Take a part of most tumours out."""
    side = rng.normal(size=3)
    radius = tumour.lesions[0].radius
    cavity = Cavity(
        side / np.linalg.norm(side),
        beyond=float(radius * rng.uniform(-0.2, 0.6)),
        wall=float(rng.uniform(1.5, 4.0)),
    )
    return replace(tumour, cavity=cavity) if rng.uniform() < 0.85 else tumour


def push_aside(warp: Array, tumour: Tumour, atlas: Atlas) -> Array:
    """Displace the tissue around each focus, less with distance and not at all at the skull."""
    grid = control_grid(STEP)
    brain = sample(atlas.brain, warp) > 0.5
    # The skull holds the surface; 20 mm below it tissue moves freely.
    free = np.clip(ndimage.distance_transform_edt(brain) * STEP / 20, 0, 1)
    displacement = np.zeros_like(warp)
    for lesion in tumour.lesions:
        arm = grid.mesh() - lesion.centre.reshape(3, 1, 1, 1)
        away = np.linalg.norm(arm, axis=0) + 1e-3
        before = np.cbrt(np.maximum(away**3 - tumour.pressure * lesion.radius**3, 0))
        fade = np.exp(-np.maximum(away - lesion.radius, 0) / 30) * free
        displacement -= arm / away * (away - before) * fade
    return move(warp, displacement.astype(np.float32))


def grow(
    rng: np.random.Generator,
    tumour: Tumour,
    warp: Array,
    atlas: Atlas,
    tissues: Tissues,
    grid: Grid,
) -> Compartments:
    """Grow the tumour in a subject; `grid` is that of the tissues' box."""
    edge = _Edge(rng, tumour)
    arrival = _arrival(tumour, warp, atlas, edge)
    box = box_on(grid, arrival < tumour.reach + 4, FRONT_STEP)
    part = grid.crop(box)
    inside, fluid = tissues.inside[box], tissues.fluid[box]

    # A core that meets the skull ends there, and its rim with it.
    distance = np.maximum(edge.at(part), 1.0 - tissues.shell[box])
    core = _soft(-distance, 0.7) * inside
    # The rim is thick here and thin there; nodules and islands make ring, solid and ragged tumours.
    thickness = tumour.rim * (1 + 0.45 * edge.field(part, 11.0) + 0.25 * edge.field(part, 5.0))
    thickness += 2.5 * np.maximum(edge.field(part, 7.0) - 0.9, 0) * tumour.rim
    thickness += 0.9 * edge.field(part, 2.5)
    depth = -distance
    shown = _soft(np.maximum(thickness, 1.2) - depth, 0.6)
    enhancing = core * shown * np.float32(tumour.enhances)

    front = (
        interpolate(arrival, FRONT_STEP, part)
        + 2.0 * edge.field(part, 5.5)
        + 0.8 * edge.field(part, 3.0)
    )
    dry = np.clip(1.6 - 2 * fluid, 0, 1)
    oedema = (1 - core) * _soft(tumour.reach - front, 1.4) * dry * inside

    cavity = None
    if tumour.cavity:
        cavity = core * _soft(_cut(tumour.lesions[0], tumour.cavity, edge, part, depth), 0.7)

    label = np.zeros(part.shape, np.uint8)
    label[(oedema > 0.5) & inside] = OEDEMA
    label[core > 0.5] = NECROSIS
    label[(core > 0.5) & (enhancing > 0.5 * core)] = ENHANCING
    if cavity is not None:
        label[cavity > 0.5] = CAVITY
    return Compartments(
        box=box,
        core=core,
        enhancing=enhancing,
        oedema=oedema,
        fading=np.clip(front / np.float32(tumour.reach), 0, 1),
        cavity=cavity,
        label=_attached(label),
    )


class _Edge:
    """The border of the core as a signed distance in mm, irregular, the same on every grid."""

    def __init__(self, rng: np.random.Generator, tumour: Tumour) -> None:
        self._tumour = tumour
        self._seed = int(rng.integers(2**63))

    def field(self, grid: Grid, scale: float) -> Array:
        return smooth_noise(np.random.default_rng([self._seed, int(scale * 10)]), grid, scale)

    def at(self, grid: Grid) -> Array:
        """Give the distance to the border, negative in the core."""
        noise = (
            0.20 * self.field(grid, 18.0)
            + 0.10 * self.field(grid, 8.0)
            + 0.07 * self.field(grid, 4.5)
        )
        nearest = np.full(grid.shape, np.inf, np.float32)
        for lesion in self._tumour.lesions:
            arm = grid.mesh() - lesion.centre.reshape(3, 1, 1, 1).astype(np.float32)
            arm = np.einsum("ij,jxyz->ixyz", lesion.axes.astype(np.float32), arm)
            away = np.sqrt(np.einsum("ixyz,ixyz->xyz", arm, arm))
            np.minimum(nearest, away - lesion.radius * (1 + noise), out=nearest)
        return nearest


def _cut(lesion: Lesion, cavity: Cavity, edge: "_Edge", grid: Grid, depth: Array) -> Array:
    """Give the distance to the cavity's border in mm, positive inside."""
    arm = grid.mesh() - lesion.centre.reshape(3, 1, 1, 1).astype(np.float32)
    along = np.einsum("i,ixyz->xyz", cavity.side.astype(np.float32), arm)
    ragged = np.float32(1.5) * edge.field(grid, 6.0)
    return np.minimum(depth - np.float32(cavity.wall), along + np.float32(cavity.beyond)) + ragged


def _possible_places(warp: Array, atlas: Atlas) -> Array:
    """List points (mm) in deep white matter of the cerebrum, where gliomas are."""
    grid = control_grid(STEP)
    white = ndimage.gaussian_filter(sample(atlas.white, warp), 1.0)
    depth = ndimage.distance_transform_edt(sample(atlas.brain, warp) > 0.5) * STEP
    # In the cropped atlas the cerebellum and brain stem are the part low and behind.
    cerebrum = (warp[2] > 42) & ((warp[2] > 66) | (warp[1] > 105))
    return grid.mesh()[:, (white > 0.4) & (depth > 12) & cerebrum].T


def _arrival(tumour: Tumour, warp: Array, atlas: Atlas, edge: _Edge) -> Array:
    """Tell when oedema reaches each point: after as many mm of white matter; grey slows it."""
    grid = control_grid(FRONT_STEP)
    box = _neighbourhood(tumour, grid)
    part = grid.crop(box)
    where = np.stack([interpolate(axis, STEP, part) for axis in warp])
    white, grey, brain = (sample(x, where) for x in (atlas.white, atlas.grey, atlas.brain))
    uneven = np.exp(0.4 * edge.field(part, 10.0))
    speed = (white**2 + 0.16 * grey) * uneven * (brain > 0.5) + 1e-3
    distance = edge.at(part)
    core = distance < 0
    speed[core] = 1

    latest = 2 * tumour.reach + 20
    march = sitk.FastMarchingImageFilter()
    front = np.argwhere(core & ~ndimage.binary_erosion(core))
    march.SetTrialPoints([[int(z), int(y), int(x)] for x, y, z in front])
    march.SetStoppingValue(latest)
    image = sitk.GetImageFromArray(speed.astype(np.float64))
    image.SetSpacing([FRONT_STEP] * 3)
    reached = np.minimum(sitk.GetArrayFromImage(march.Execute(image)), latest)
    whole = np.full(grid.shape, latest, np.float32)
    whole[box] = np.where(core, distance, reached)
    return whole


def _neighbourhood(tumour: Tumour, grid: Grid) -> Box:
    """Bound what oedema could reach at its fastest."""
    parts = []
    for axis, centres in enumerate(grid.axes):
        spans = [(x.centre[axis], 1.7 * x.radius + 1.5 * tumour.reach + 8) for x in tumour.lesions]
        low, high = min(c - r for c, r in spans), max(c + r for c, r in spans)
        start, stop = np.searchsorted(centres, (max(low, 0.0), min(high, FULL_SIZE[axis] - 1.0)))
        parts.append(slice(int(start), int(stop)))
    x, y, z = parts
    return x, y, z


def _soft(margin: Array, width: float) -> Array:
    """Turn a margin in mm into membership: one half at zero."""
    return (0.5 + 0.5 * np.tanh(margin / np.float32(2 * width))).astype(np.float32)


def _attached(label: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Drop oedema that no core touches."""
    pieces, _ = ndimage.label(label > 0)
    kept = np.unique(pieces[(label > 0) & (label != OEDEMA)])
    return np.where(np.isin(pieces, kept), label, 0).astype(np.uint8)
