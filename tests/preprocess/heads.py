"""Measure registration on raw phantoms: `python -m tests.preprocess.heads OUT --heads 0 20`.

Prints for each scan how far, inside the brain, it comes to lie from where it truly was: the mean
and the worst point, mm. Scans are compared with the anchor, whose truth is known exactly, and the
anchor with BraTS's grid, where every phantom lies a little turned and scaled of its own.
"""

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from bts_lightning.data.phantom.raw import scan_raw
from bts_lightning.data.phantom.space import FULL_SIZE
from bts_lightning.data.phantom.write import generate_case
from bts_lightning.modalities import Modality
from bts_lightning.preprocess.patient import Aligned, Recipe, align
from bts_lightning.preprocess.series import Series
from bts_lightning.preprocess.sheet import draw

MEDIAN_MM, WORST_MM = 1.0, 3.0
SEED = 7


def errors(
    aligned: Aligned, motions: Mapping[Modality, NDArray[np.float64]], brain: sitk.Image
) -> dict[Modality, NDArray[np.float64]]:
    """Give mm between found and true place for points of the brain, for each scan."""
    index = np.argwhere(sitk.GetArrayFromImage(brain).T > 0)[::97]
    points = [brain.TransformIndexToPhysicalPoint(i.tolist()) for i in index]
    true = {m: moved(motions[m], np.array(points)) for m in aligned.transforms}
    to_grid = aligned.transforms[aligned.anchor].GetInverse()
    placed = [to_grid.TransformPoint(p.tolist()) for p in true[aligned.anchor]]
    found = {
        modality: np.linalg.norm(
            [transform.TransformPoint(p) for p in placed] - true[modality], axis=1
        )
        for modality, transform in aligned.transforms.items()
    }
    return found | {aligned.anchor: np.linalg.norm(np.array(placed) - points, axis=1)}


def moved(motion: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    return points @ motion[:3, :3].T + motion[:3, 3]


def dice(aligned: Aligned, motion: NDArray[np.float64], brain: sitk.Image) -> float:
    """Compare the mask with the true brain, carried to the same place."""
    back = sitk.AffineTransform(3)
    back.SetMatrix(np.linalg.inv(motion)[:3, :3].ravel().tolist())
    back.SetTranslation(np.linalg.inv(motion)[:3, 3].tolist())
    path = sitk.CompositeTransform([back, aligned.transforms[aligned.anchor]])
    there = sitk.Resample(brain, aligned.brain, path, sitk.sitkNearestNeighbor)
    true, found = (sitk.GetArrayViewFromImage(mask) > 0 for mask in (there, aligned.brain))
    return float(2 * (true & found).sum() / (true.sum() + found.sum()))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--heads", type=int, nargs=2, default=(0, 20))
    parser.add_argument("--size", type=int, nargs=3, default=FULL_SIZE)
    parser.add_argument("--sheets", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for index in range(*args.heads):
        done = args.out / f"{index:02d}.json"
        if done.exists():
            continue
        size = (args.size[0], args.size[1], args.size[2])
        images, _, _ = generate_case(SEED, index, size)
        head = scan_raw(np.random.default_rng([SEED, index]), images, size)
        scans = {m: Series(sitk.Cast(i, sitk.sitkFloat32), m) for m, i in head.scans.items()}
        start = time.monotonic(), time.process_time()
        aligned = align(scans, Recipe(strip="atlas"))
        seconds, worked = time.monotonic() - start[0], time.process_time() - start[1]
        apart = errors(aligned, head.motions, head.brain)
        found = {m: [float(e.mean()), float(e.max())] for m, e in apart.items()}
        thick = {m: max(scan.image.GetSpacing()) for m, scan in scans.items()}
        mask = dice(aligned, head.motions[aligned.anchor], head.brain)
        facts = {
            "found": found,
            "thick": thick,
            "faults": aligned.faults,
            "dice": mask,
            "seconds": seconds,
            "worked": worked,
            "anchor": aligned.anchor,
            **aligned.facts,
        }
        done.write_text(json.dumps(facts))
        if args.sheets or aligned.faults:
            draw(aligned, args.out / f"{index:02d}.png")
        shown = ", ".join(f"{m} {a:.2f}/{b:.2f} ({thick[m]:.1f})" for m, (a, b) in found.items())
        said = (
            f"mask {facts['dice']:.3f}; {seconds:.0f} s, {worked:.0f} of a core; {aligned.faults}"
        )
        print(f"head {index:2d}: {shown}; {said}", flush=True)
    summarise(args.out)


def summarise(out: Path) -> None:
    """Print the figures of all heads that were measured."""
    facts = [json.loads(file.read_text()) for file in sorted(out.glob("[0-9][0-9].json"))]
    pairs = [(f, m, *f["found"][m]) for f in facts for m in f["found"] if m != f["anchor"]]
    passed = [worst for f, _, _, worst in pairs if not f["faults"]]
    silent = [worst for worst in passed if worst > WORST_MM]
    middle = np.median([mean for *_, mean, _ in pairs])
    masks = [f["dice"] for f in facts]
    print(
        f"{len(facts)} heads, {len(pairs)} registrations: median of means {middle:.2f} mm, worst "
        f"point {max(worst for *_, worst in pairs):.2f} mm; refused heads: "
        f"{sum(bool(f['faults']) for f in facts)}; beyond {WORST_MM} mm and not refused: "
        f"{len(silent)}; Dice of masks: median {np.median(masks):.3f}, least {min(masks):.3f}; "
        f"seconds of a core: median {np.median([f['worked'] for f in facts]):.0f}"
    )
    assert middle <= MEDIAN_MM
    assert not silent


if __name__ == "__main__":
    main()
