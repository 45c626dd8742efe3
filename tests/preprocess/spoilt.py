"""Make registrations fail, and count what the guard lets through.

`python -m tests.preprocess.spoilt OUT` spoils a scan of a raw phantom in each of several ways, or
the search for where it lies, once as the scan that is brought to an anchor (`scan`) and once as the
anchor that is brought to the atlas (`head`). A scan is lost when a point of the brain lies more
than 3 mm from its true place; a head when one lies more than 10 mm from where the unspoilt search
puts it, for the atlas is another brain. The guard must refuse all that are lost and no other.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from bts_lightning.data.phantom.anatomy import template_file
from bts_lightning.modalities import Modality
from bts_lightning.preprocess import patient, register
from bts_lightning.preprocess.patient import Aligned, Recipe, align
from bts_lightning.preprocess.series import Series
from bts_lightning.preprocess.sheet import draw
from tests.preprocess.heads import SEED, WORST_MM, moved
from tests.preprocess.parts import raw_head

Array = NDArray[np.float64]
Rng = np.random.Generator
# Voxels of 2 mm: nothing is compared on a finer grid.
SIZE = (120, 120, 78)
LOST_MM = {"scan": WORST_MM, "head": 10.0}
ANCHOR: Modality = "t1c"


@dataclass(frozen=True)
class Scan:
    """A scan, and what has moved it since it was a phantom's: 4×4."""

    image: sitk.Image
    motion: Array


def placed(scan: sitk.Image, linear: Array, shift: Array | float = 0.0) -> Scan:
    """Turn a scan about its middle and shift it: its grid alone moves."""
    motion = about_middle(scan, linear)
    motion[:3, 3] += shift
    image = sitk.Image(scan)
    image.SetDirection((linear @ axes(scan)).ravel().tolist())
    image.SetOrigin((linear @ scan.GetOrigin() + motion[:3, 3]).tolist())
    return Scan(image, motion)


def about_middle(scan: sitk.Image, linear: Array) -> Array:
    middle = np.array(
        scan.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in scan.GetSize()])
    )
    motion = np.eye(4)
    motion[:3, :3], motion[:3, 3] = linear, middle - linear @ middle
    return motion


def axes(scan: sitk.Image) -> Array:
    return np.reshape(scan.GetDirection(), (3, 3))


def with_values(scan: sitk.Image, values: NDArray[np.generic]) -> sitk.Image:
    image = sitk.GetImageFromArray(np.ascontiguousarray(values, dtype=np.float32))
    image.CopyInformation(scan)
    return image


def turned(rng: Rng, scan: sitk.Image, least: float, most: float) -> Scan:
    axis = rng.standard_normal(3)
    angle = float(np.deg2rad(rng.uniform(least, most)))
    versor = sitk.VersorTransform((axis / np.linalg.norm(axis)).tolist(), angle)
    return placed(scan, np.reshape(versor.GetMatrix(), (3, 3)))


def untouched(rng: Rng, scan: sitk.Image) -> Scan:
    return Scan(scan, np.eye(4))


def turned_by_40(rng: Rng, scan: sitk.Image) -> Scan:
    return turned(rng, scan, 30, 50)


def turned_by_75(rng: Rng, scan: sitk.Image) -> Scan:
    return turned(rng, scan, 60, 90)


def upside_down(rng: Rng, scan: sitk.Image) -> Scan:
    return turned(rng, scan, 170, 180)


def thrown_far(rng: Rng, scan: sitk.Image) -> Scan:
    return placed(scan, np.eye(3), rng.choice([-1, 1], 3) * rng.uniform(100, 200, 3))


def mirrored(rng: Rng, scan: sitk.Image) -> Scan:
    """Swap left and right, as a converter does that loses a sign."""
    axis = int(np.abs(axes(scan)[0]).argmax())
    flipped = np.flip(sitk.GetArrayViewFromImage(scan), 2 - axis)
    way = axes(scan)[:, axis]
    return Scan(with_values(scan, flipped), about_middle(scan, np.eye(3) - 2 * np.outer(way, way)))


def halved(rng: Rng, scan: sitk.Image) -> Scan:
    axis, side = int(rng.integers(3)), int(rng.integers(2))
    start, size = [0] * 3, [*scan.GetSize()]
    size[axis] //= 2
    start[axis] = side * size[axis]
    return Scan(sitk.RegionOfInterest(scan, size, start), np.eye(4))


def stretched(rng: Rng, scan: sitk.Image) -> Scan:
    """Give slices a wrong distance."""
    spacing = np.array(scan.GetSpacing())
    wrong = np.ones(3)
    wrong[spacing.argmax()] = rng.choice([0.8, 0.9, 1.1, 1.25])
    motion = about_middle(scan, axes(scan) @ np.diag(wrong) @ axes(scan).T)
    image = sitk.Image(scan)
    image.SetSpacing((spacing * wrong).tolist())
    image.SetOrigin(moved(motion, np.array([scan.GetOrigin()]))[0].tolist())
    return Scan(image, motion)


def noisy(rng: Rng, scan: sitk.Image) -> Scan:
    values = sitk.GetArrayFromImage(scan).astype(np.float32)
    spread = float(np.percentile(values, 95)) * rng.choice([0.3, 0.6, 1.2])
    parts = spread * rng.standard_normal((2, *values.shape), np.float32)
    return Scan(with_values(scan, np.hypot(values + parts[0], parts[1])), np.eye(4))


SPOILS: dict[str, Callable[[Rng, sitk.Image], Scan]] = {
    way.__name__: way
    for way in (
        *(untouched, turned_by_40, turned_by_75, upside_down, thrown_far, mirrored, halved),
        *(stretched, noisy),
    )
}


@contextmanager
def cut_off(evaluations: int) -> Iterator[None]:
    """Stop each search of an optimizer early, but for those of the guard."""
    whole, judged = register.optimize.minimize, register._judged

    def short(*args: Any, options: dict[str, Any], **others: Any) -> Any:
        return whole(*args, **others, options=options | {"maxfev": evaluations})

    def judge(*args: Any) -> Any:
        with patch.object(register.optimize, "minimize", whole):
            return judged(*args)

    with (
        patch.object(register.optimize, "minimize", short),
        patch.object(register, "_judged", judge),
    ):
        yield


def begun_at(turns: Callable[[], Array], count: int) -> AbstractContextManager[Any]:
    """Search from few places alone: what a search gives that has missed the right one."""

    def starts(level: Any, freedom: str) -> Iterator[Array]:
        for _ in range(count):
            start = np.zeros(12)
            start[:3], start[3:6] = turns(), level.middle - level.centre
            start[6] = 0.0 if freedom == "rigid" else np.log(register.SCALE)
            yield start

    return patch.object(register, "_starts", starts)


def wrong_turns(rng: Rng) -> Array:
    axis = rng.standard_normal(3)
    turns: Array = axis / np.linalg.norm(axis) * rng.uniform(1.2, 2.6)
    return turns


SEARCHES: dict[str, Callable[[Rng], AbstractContextManager[Any]]] = {
    "cut_off_at_20": lambda rng: cut_off(20),
    "cut_off_at_80": lambda rng: cut_off(80),
    "one_start": lambda rng: begun_at(lambda: np.zeros(3), 1),
    "wrong_starts": lambda rng: begun_at(lambda: wrong_turns(rng), 3),
    "one_wrong_start": lambda rng: begun_at(lambda: wrong_turns(rng), 1),
}


# Of the template, z y x.
ATLASES: dict[str, Callable[[NDArray[np.float32]], NDArray[np.generic]]] = {
    "atlas_upside_down": lambda values: values[::-1],
    "atlas_back_to_front": lambda values: values[:, ::-1],
    "atlas_of_noise": lambda values: (
        (values > 0) * np.random.default_rng(0).uniform(50, 200, values.shape)
    ),
}
WAYS = {
    "scan": [*SPOILS, *SEARCHES],
    "head": [*(way for way in SPOILS if way != "mirrored"), *SEARCHES, *ATLASES],
}


@lru_cache(maxsize=1)
def unspoilt(index: int) -> tuple[Aligned, Any]:
    """Bring the anchor of a phantom to the atlas, and keep how."""
    kept: list[Any] = []
    whole = patient.register_atlas

    def keep(*args: Any) -> Any:
        kept.append(whole(*args))
        return kept[0]

    with patch.object(patient, "register_atlas", keep):
        aligned = align({ANCHOR: series(raw_head(index, SIZE).scans[ANCHOR], "")}, Recipe("atlas"))
    return aligned, kept[0]


def series(image: sitk.Image, digest: str) -> Series:
    return Series(sitk.Cast(image, sitk.sitkFloat32), digest)


@dataclass(frozen=True)
class Trial:
    """What became of a spoilt registration.

    Attributes:
        worst: mm from its true place, at most, in the brain.
        missing: share of the brain that the spoilt scan lacks.
        is_lost: must be refused.
    """

    aligned: Aligned
    worst: float
    missing: float
    is_lost: bool


def trial(index: int, kind: str, way: str) -> Trial:
    """Spoil a scan, or the search for its place, and measure how far off it comes to lie."""
    rng = np.random.default_rng([SEED, index, *way.encode()])
    head = raw_head(index, SIZE)
    modality: Modality = ANCHOR
    if kind == "scan":
        modality = [m for m in head.scans if m != ANCHOR][int(rng.integers(3))]
    # What lies where the files say would be found from one start.
    spoil = SPOILS.get(way, turned_by_40 if way == "one_start" else untouched)
    scan = spoil(rng, head.scans[modality])
    motion = scan.motion @ head.motions[modality]
    scans = {ANCHOR: series(head.scans[ANCHOR], "")} | {modality: series(scan.image, "spoilt")}
    good, place = unspoilt(index)
    search = SEARCHES[way](rng) if way in SEARCHES else nullcontext()
    kept = patch.object(patient, "register_atlas", lambda *_: place)
    with TemporaryDirectory() as folder, search, kept if kind == "scan" else nullcontext():
        recipe = Recipe("atlas", atlas=write_atlas(Path(folder), way) if way in ATLASES else None)
        aligned = align(scans, recipe)
    points = inside(head.brain)
    if kind == "scan":
        placed = through(good.transforms[ANCHOR].GetInverse(), moved(head.motions[ANCHOR], points))
        off = through(aligned.transforms[modality], placed) - moved(motion, points)
    else:
        true = through(good.transforms[ANCHOR].GetInverse(), moved(head.motions[ANCHOR], points))
        off = through(aligned.transforms[ANCHOR].GetInverse(), moved(motion, points)) - true
    worst = float(np.linalg.norm(off, axis=1).max())
    missing = 1 - float(np.mean([is_in(scan.image, p) for p in moved(motion, points)]))
    return Trial(aligned, worst, missing, worst > LOST_MM[kind] or missing > 0.15)


def inside(brain: sitk.Image) -> Array:
    index = np.argwhere(sitk.GetArrayFromImage(brain).T > 0)[::97]
    return np.array([brain.TransformIndexToPhysicalPoint(i.tolist()) for i in index])


def through(transform: sitk.Transform, points: Array) -> Array:
    return np.array([transform.TransformPoint(p.tolist()) for p in points])


def is_in(scan: sitk.Image, point: Array) -> bool:
    index = scan.TransformPhysicalPointToContinuousIndex(point.tolist())
    return all(-0.5 <= i <= n - 0.5 for i, n in zip(index, scan.GetSize(), strict=True))


def write_atlas(folder: Path, way: str) -> Path:
    template = sitk.ReadImage(str(template_file("t1")), sitk.sitkFloat32)
    image = with_values(template, ATLASES[way](sitk.GetArrayFromImage(template)))
    sitk.WriteImage(image, str(folder / "atlas.nrrd"))
    return folder / "atlas.nrrd"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--heads", type=int, nargs=2, default=(0, 4))
    parser.add_argument("--kinds", nargs="+", default=list(LOST_MM))
    parser.add_argument("--ways", nargs="+", default=[])
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for index in range(*args.heads):
        for kind in args.kinds:
            for way in (w for w in WAYS[kind] if w in (args.ways or WAYS[kind])):
                measure(args.out / f"{kind}_{way}_{index:02d}.json", index, kind, way)
    summarise(args.out)


def measure(done: Path, index: int, kind: str, way: str) -> None:
    if done.exists():
        return
    found = trial(index, kind, way)
    is_refused = bool(found.aligned.faults)
    if found.is_lost != is_refused:
        draw(found.aligned, done.with_suffix(".png"))
    facts = {"kind": kind, "way": way, "worst": found.worst, "lost": found.is_lost}
    done.write_text(json.dumps(facts | {"faults": found.aligned.faults} | found.aligned.facts))
    places = "; ".join(
        f"{m} {i['before']:.2f} → {i['after']:.2f}, {i['apart_mm']:.1f} mm apart, {i['rival']:.2f}"
        for m, i in found.aligned.facts["information"].items()
    )
    said = {(True, True): "refused", (True, False): "LET THROUGH", (False, True): "WRONG"}
    verdict = said.get((found.is_lost, is_refused), "good")
    line = f"{index} {kind} {way}: {found.worst:.1f} mm, {found.missing:.0%} missing, {verdict}"
    print(f"{line}; {places}; {found.aligned.faults}", flush=True)


def summarise(out: Path) -> None:
    facts = [json.loads(file.read_text()) for file in sorted(out.glob("*_[0-9][0-9].json"))]
    for kind in LOST_MM:
        lost = [f for f in facts if f["kind"] == kind and f["lost"]]
        good = [f for f in facts if f["kind"] == kind and not f["lost"]]
        print(
            f"{kind}: {len(lost)} lost (beyond {LOST_MM[kind]:.0f} mm), "
            f"{sum(bool(f['faults']) for f in lost)} of them refused; {len(good)} good, "
            f"{sum(bool(f['faults']) for f in good)} of them refused"
        )


if __name__ == "__main__":
    main()
