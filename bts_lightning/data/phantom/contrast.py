"""What a scanner makes of a head: four contrasts, coil shading, thick slices, noise and units."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bts_lightning.data.phantom.anatomy import Tissues
from bts_lightning.data.phantom.space import Array, Grid, smooth_noise
from bts_lightning.data.phantom.tumour import Compartments
from bts_lightning.modalities import MODALITIES, Modality


@dataclass(frozen=True)
class Brightness:
    """How bright each substance is in one modality, fluid of T2 being about 1.

    The order of the values is the physics; the gaps were set by eye, and so that a network loses
    with a modality what it loses on BraTS: the enhancing rim is plain in T1c alone, oedema in T2
    and FLAIR.
    """

    fluid: float
    grey: float
    white: float
    oedema: float
    necrosis: float
    enhancing: float
    oedema_share: float  # how much of the signal oedema takes over from the tissue it soaks
    necrosis_spread: float  # between patients


BRIGHTNESS: dict[Modality, Brightness] = {
    "t1": Brightness(0.24, 0.61, 0.82, 0.58, 0.61, 0.64, 0.36, 0.04),
    "t1c": Brightness(0.25, 0.62, 0.80, 0.58, 0.49, 1.10, 0.36, 0.05),
    "t2": Brightness(1.02, 0.57, 0.42, 0.86, 0.84, 0.77, 0.78, 0.07),
    "flair": Brightness(0.14, 0.62, 0.48, 1.00, 0.78, 0.86, 0.76, 0.12),
}


def render(
    rng: np.random.Generator, tissues: Tissues, tumour: Compartments, grid: Grid
) -> dict[Modality, NDArray[np.int16]]:
    """Take the four images of a head; `grid` is that of the tissues' box."""
    shared = _Shared(rng, tissues, tumour, grid)
    images = {}
    # Own chance for each scan, in which what depends on the grid comes last: brightness is the same
    # at every resolution.
    for modality, own in zip(MODALITIES, rng.spawn(len(MODALITIES)), strict=True):
        # Scanner units: two hospitals may differ by a factor of seven.
        gain = float(np.exp(own.uniform(np.log(250), np.log(1800))))
        signal = _healthy(own, modality, shared)
        _add_tumour(own, modality, signal, shared)
        signal *= np.exp(np.float32(own.uniform(0.03, 0.12)) * smooth_noise(own, grid, 75.0))
        signal = _acquire(own, signal, modality, grid)
        # One is the least that a voxel of the brain has; zero is background and nothing else.
        units = np.where(tissues.inside, np.maximum(np.rint(signal * gain), 1), 0)
        images[modality] = units.astype(np.int16)
    return images


class _Shared:
    """What all four images of one head have in common."""

    def __init__(
        self, rng: np.random.Generator, tissues: Tissues, tumour: Compartments, grid: Grid
    ) -> None:
        self.tissues, self.tumour, self.grid = tissues, tumour, grid
        self.grain = smooth_noise(rng, grid, 3.5)
        part = grid.crop(tumour.box)
        self.patchy = smooth_noise(rng, part, 6.0)
        self.vessels = _vessels(rng, grid)
        self.caps = float(rng.uniform(0, 0.22))
        self.enhancement = float(np.exp(rng.normal(0, 0.13)))


def _healthy(rng: np.random.Generator, modality: Modality, shared: _Shared) -> Array:
    bright, tissues, grid = BRIGHTNESS[modality], shared.tissues, shared.grid
    fluid, grey, white = (
        np.float32(level * rng.normal(1, 0.035))
        for level in (bright.fluid, bright.grey, bright.white)
    )
    grain = 1 + np.float32(0.018) * shared.grain + np.float32(0.018) * smooth_noise(rng, grid, 5.0)
    signal = (grey * tissues.grey + white * tissues.white) * grain + fluid * tissues.fluid
    # The skull's place holds fluid, so that thick slices do not darken the rim of the brain.
    signal[~tissues.inside] = fluid
    if modality == "t1c":
        signal += _enhanced_vessels(rng, shared)
    if modality == "t2":
        # Blood that flows gives no echo.
        signal *= 1 - np.float32(0.7) * shared.vessels * np.clip(2 * tissues.fluid, 0, 1)
    if modality == "flair":
        signal += _aged_white_matter(rng, shared)
    return signal


def _enhanced_vessels(rng: np.random.Generator, shared: _Shared) -> Array:
    """Light up what takes up contrast in a healthy head: vessels, falx, dura, choroid plexus."""
    tissues, grid = shared.tissues, shared.grid
    fluid, ventricles = tissues.fluid, tissues.ventricles
    course = np.clip(3 * fluid, 0, 1) * (ventricles > 4) + np.float32(0.12) * tissues.grey
    falx = np.exp(-((tissues.midline / 1.3) ** 2)) * fluid * (ventricles > 12)
    falx *= 1 + np.float32(0.4) * smooth_noise(rng, grid, 8.0)
    dura = np.exp(-tissues.shell / 2) * fluid
    dura *= np.clip(smooth_noise(rng, grid, 9.0) - 0.3, 0, 1.5)
    plexus = np.clip(smooth_noise(rng, grid, 6.0) - 0.9, 0, 1) * (ventricles < -1) * fluid
    light = np.float32(0.8) * shared.vessels * course + np.float32(0.45) * falx
    light += np.float32(0.5) * dura + np.float32(0.6) * plexus
    return light


def _aged_white_matter(rng: np.random.Generator, shared: _Shared) -> Array:
    """Light up caps on the ventricles and small spots, which are no tumour."""
    tissues = shared.tissues
    away = np.maximum(tissues.ventricles, 0)
    caps = np.exp(-away / 2.5) * np.clip(1.3 - 2 * tissues.fluid, 0, 1)
    spots = np.clip(smooth_noise(rng, shared.grid, 5.0) - 2.0, 0, 1) * np.exp(-away / 12)
    return np.float32(shared.caps) * (caps + 2 * spots * tissues.white)


def _add_tumour(
    rng: np.random.Generator, modality: Modality, signal: Array, shared: _Shared
) -> None:
    bright, tumour = BRIGHTNESS[modality], shared.tumour
    part = shared.grid.crop(tumour.box)
    patchy = np.float32(0.6) * shared.patchy + np.float32(0.6) * smooth_noise(rng, part, 5.0)
    view = signal[tumour.box]

    def mix(level: float, share: NDArray[np.floating], spread: float) -> None:
        view[...] += share * (np.float32(level) * (1 + np.float32(spread) * patchy) - view)

    dilute = 1.12 - np.float32(0.35) * tumour.fading**2
    soaked = (bright.oedema_share * dilute * (1 + np.float32(0.2) * patchy)).clip(0, 1)
    mix(bright.oedema * rng.normal(1, 0.04), soaked * tumour.oedema, 0.03)
    necrosis = bright.necrosis + bright.necrosis_spread * rng.normal()
    if modality == "flair" and not tumour.enhancing.any():
        # The core of a low-grade tumour is solid tissue, bright where necrosis is half suppressed.
        necrosis = max(necrosis, 0.86)
    mix(necrosis, np.float32(0.95) * tumour.core, 0.09)
    enhancing, spread = bright.enhancing * rng.normal(1, 0.03), 0.07
    if modality == "t1c":
        enhancing, spread = bright.enhancing * shared.enhancement, 0.17
    mix(enhancing, np.float32(0.95) * tumour.enhancing, spread)
    if tumour.cavity is not None:
        mix(bright.fluid, np.float32(0.97) * tumour.cavity, 0.02)


def _vessels(rng: np.random.Generator, grid: Grid) -> Array:
    """Draw winding tubes: where two smooth fields are both zero is a set of curves."""
    voxel = max(float(axis[1] - axis[0]) for axis in grid.axes)
    # The slope of such a field is about 1.2 / scale, so this is a radius of 0.9 mm or half a voxel.
    radius = max(0.9, 0.5 * voxel) * 1.2 / 15.0
    one, other = smooth_noise(rng, grid, 15.0), smooth_noise(rng, grid, 15.0)
    fill = np.float32(min(1.0, 1.6 / voxel))
    return fill * np.exp(-(one**2 + other**2) / np.float32(2 * radius**2))


def _acquire(rng: np.random.Generator, signal: Array, modality: Modality, grid: Grid) -> Array:
    """Scan thick slices with Rician noise, then resample them to the grid as BraTS did."""
    heights = grid.axes[2]
    voxel = float(heights[1] - heights[0])
    # T1c is nearly always a 3-D scan; T2 and FLAIR often come in thick slices.
    thickest = {"t1": 3.0, "t1c": 1.3, "t2": 4.0, "flair": 4.0}[modality]
    thickness = max(float(rng.uniform(1.0, thickest)), voxel)
    noise = float(rng.uniform(0.018, 0.038))
    if thickness > voxel:
        signal = ndimage.gaussian_filter1d(signal, thickness / voxel / 2.5, axis=2, truncate=2.0)
    slices = np.arange(heights[0] + rng.uniform(-1, 0), heights[-1] + thickness, thickness)
    scan = _resample(signal, (slices - heights[0]) / voxel)
    first, second = (rng.standard_normal(scan.shape, dtype=np.float32) for _ in range(2))
    scan = np.hypot(scan + np.float32(noise) * first, np.float32(noise) * second)
    return _resample(scan, (heights - slices[0]) / thickness)


def _resample(x: Array, position: NDArray[np.floating]) -> Array:
    """Interpolate linearly along the last axis, holding the end values."""
    position = np.clip(position, 0, x.shape[2] - 1)
    low = np.minimum(position.astype(np.intp), x.shape[2] - 2)
    share = (position - low).astype(np.float32)
    return np.take(x, low, axis=2) * (1 - share) + np.take(x, low + 1, axis=2) * share
