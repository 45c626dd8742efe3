"""One patient: from series as scanned to images on BraTS's grid, and how sure that is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from bts_lightning.errors import DataError
from bts_lightning.modalities import MODALITIES, SHOWN_AS, Modality
from bts_lightning.preprocess import atlas
from bts_lightning.preprocess.register import Registration, composed, register, register_atlas
from bts_lightning.preprocess.series import Series, read_series
from bts_lightning.preprocess.strip import Strip, by_hd_bet, chosen, count_pieces, without_crumbs

# The one that the others are registered to: most detail first.
ANCHORS: tuple[Modality, ...] = ("t1c", "t1", "flair", "t2")
# Of grown brains with room for tumours and atrophy, litres.
LEAST_BRAIN, MOST_BRAIN = 0.9, 2.0
# Of the affine transform from the atlas, which makes the mask alone.
LEAST_SIZE, MOST_SIZE = 0.7, 1.3
# Between two registrations, mm: of a scan, and of an anchor to the atlas, which is another brain.
MOST_APART, MOST_APART_FROM_ATLAS = 2.0, 10.0
# Share of the brain that a scan may lack, as where a slab of slices ends.
MOST_MISSING = 0.1
# How well a scan may fit the other way round, beside how well it fits.
MOST_RIVAL = 1.0
# What more freedom may move, mm: 3.5 with a T2 of 5.5 mm slices that lies right.
MOST_BENT = 5.0
# Voxels of 1 mm around a patient's brain in which scans are compared.
AROUND = 10


@dataclass(frozen=True)
class Recipe:
    """How patients are prepared.

    Attributes:
        strip: what finds the brain.
        keep_skull: whole heads in place of brains.
        n4: take coil shading away first.
        atlas: another stripped brain than the ICBM's.
        mask: of the brain, on the grid of any scan that is given; for one patient alone.
    """

    strip: Strip = "auto"
    keep_skull: bool = False
    n4: bool = False
    atlas: Path | None = None
    mask: Path | None = None


@dataclass
class Aligned:
    """A patient on BraTS's grid.

    Attributes:
        transforms: from points of BraTS's grid to those of each scan.
        heads: each scan on BraTS's grid, with skull.
        brain: its mask, there.
        facts: what was measured, for `preprocess.json`.
        faults: why it should not be trusted.
    """

    anchor: Modality
    template: sitk.Image
    transforms: dict[Modality, sitk.Transform]
    heads: dict[Modality, sitk.Image]
    brain: sitk.Image
    facts: dict[str, Any]
    faults: list[str] = field(default_factory=list)

    def image(self, modality: Modality, recipe: Recipe) -> sitk.Image:
        """Give what is written: 0 outside the brain."""
        head = self.heads[modality]
        return head if recipe.keep_skull else sitk.Mask(head, self.brain)


def align(
    scans: Mapping[Modality, Series], recipe: Recipe, tell: Callable[[str], None] = lambda _: None
) -> Aligned:
    """Register all scans to one of them and that one to the atlas; resample each once."""
    anchor = next(modality for modality in ANCHORS if modality in scans)
    head = scans[anchor].image
    template = atlas.load(recipe.atlas)
    tell("atlas")
    place = register_atlas(template.head, head, template.seen, template.near)
    found = Aligned(
        anchor, template.shown, {anchor: place.transform}, {}, template.brain, {"anchor": anchor}
    )
    _note(found, anchor, place)
    kind = "given" if recipe.mask else chosen(recipe.strip)
    fitted = _fitted(found, template, place, by_atlas=kind == "atlas")
    near = sitk.Resample(
        atlas.grown(fitted, AROUND), head, place.transform.GetInverse(), sitk.sitkNearestNeighbor
    )
    axes = np.reshape(place.transform.GetMatrix(), (3, 3))
    for modality in (m for m in MODALITIES if m in scans and m != anchor):
        tell(SHOWN_AS[modality])
        moved = register(head, scans[modality].image, near, axes)
        _note(found, modality, moved)
        found.transforms[modality] = composed(moved.transform, place.transform)
    for modality, transform in found.transforms.items():
        image = scans[modality].image
        if recipe.n4:
            tell(f"N4 of {SHOWN_AS[modality]}")
            image = _without_shading(image, fitted, transform)
        found.heads[modality] = sitk.Resample(image, atlas.grid(), transform, sitk.sitkLinear, 0.0)
    tell("brain")
    found.brain = _brain(found, recipe, kind, fitted, scans)
    _guard_brain(found, kind)
    return found


def _note(found: Aligned, modality: Modality, registered: Registration) -> None:
    """Keep how well images agree before and after, and blame what got no better."""
    to = "atlas" if modality == found.anchor else found.anchor
    measures = {
        "to": to,
        "before": round(registered.before, 3),
        "after": round(registered.after, 3),
        "apart_mm": round(registered.apart, 1),
        "bent_mm": round(registered.bent, 1),
        "rival": round(registered.rival, 3),
    }
    found.facts.setdefault("information", {})[modality] = measures
    name = SHOWN_AS[modality]
    if registered.after < registered.before - 0.01:
        fell = f"from {registered.before:.2f} to {registered.after:.2f}"
        found.faults.append(f"{name}: mutual information fell {fell}")
    if registered.apart > (MOST_APART_FROM_ATLAS if modality == found.anchor else MOST_APART):
        found.faults.append(f"{name}: two registrations lie {registered.apart:.0f} mm apart")
    if modality != found.anchor and registered.bent > MOST_BENT:
        found.faults.append(
            f"{name} fits better when its border is moved by {registered.bent:.0f} mm: are its "
            "voxels as large as the file says?"
        )
    if registered.rival > MOST_RIVAL:
        found.faults.append(f"{name} fits as well when it is turned or mirrored")


def _fitted(
    found: Aligned, template: atlas.Atlas, place: Registration, *, by_atlas: bool
) -> sitk.Image:
    """Bring the template's brain, fitted to the head, to BraTS's grid: for the mask alone."""
    assert place.fitted is not None
    size = float(np.linalg.det(np.reshape(place.fitted.GetMatrix(), (3, 3))))
    found.facts["size"] = round(size, 3)
    if by_atlas and not LEAST_SIZE <= size <= MOST_SIZE:
        found.faults.append(
            f"the atlas had to be scaled by {size:.2f}, not {LEAST_SIZE} to {MOST_SIZE}"
        )
    back = composed(place.fitted.GetInverse(), place.transform)
    return sitk.Resample(template.brain, atlas.grid(), back, sitk.sitkNearestNeighbor)


def _brain(
    found: Aligned, recipe: Recipe, kind: str, fitted: sitk.Image, scans: Mapping[Modality, Series]
) -> sitk.Image:
    if recipe.mask:
        given = read_series(recipe.mask).image
        owner = next(
            (m for m, s in scans.items() if given.IsSameImageGeometryAs(s.image, 1e-3, 1e-3)), None
        )
        if owner is None:
            raise DataError(f"--mask {recipe.mask} lies on the grid of none of the scans")
        mask = sitk.Resample(
            given > 0, atlas.grid(), found.transforms[owner], sitk.sitkNearestNeighbor
        )
        return sitk.Cast(mask, sitk.sitkUInt8)
    if kind == "hd-bet":
        return by_hd_bet(found.heads[found.anchor])
    return without_crumbs(fitted)


def _guard_brain(found: Aligned, kind: str) -> None:
    values = sitk.GetArrayViewFromImage(found.brain) > 0
    litres, pieces = float(values.sum()) / 1e6, count_pieces(found.brain)
    found.facts |= {"mask": kind, "brain_ml": round(1000 * litres), "pieces": pieces}
    if not LEAST_BRAIN <= litres <= MOST_BRAIN:
        found.faults.append(f"the brain measures {litres:.2f} l, not {LEAST_BRAIN} to {MOST_BRAIN}")
    if pieces != 1:
        found.faults.append(f"the brain mask has {pieces} pieces")
    for modality, head in found.heads.items():
        missing = float((sitk.GetArrayViewFromImage(head)[values] == 0).mean()) if litres else 0.0
        if missing > MOST_MISSING:
            found.faults.append(f"{missing:.0%} of the brain lie outside of {SHOWN_AS[modality]}")


def _without_shading(image: sitk.Image, brain: sitk.Image, transform: sitk.Transform) -> sitk.Image:
    """Divide by the smooth field that N4 finds in the brain, on a grid of 4 mm."""
    mask = sitk.Resample(brain, image, transform.GetInverse(), sitk.sitkNearestNeighbor)
    shrink = [max(1, round(4 / edge)) for edge in image.GetSpacing()]
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.Execute(sitk.Shrink(image, shrink), sitk.Shrink(mask, shrink))
    field = sitk.Cast(n4.GetLogBiasFieldAsImage(image), sitk.sitkFloat32)
    return image / sitk.Exp(field)
