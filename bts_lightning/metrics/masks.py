"""All masks of a case as the bits of one volume, and what metrics are made of."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bts_lightning.metrics.calibration.counts import Calibration
from bts_lightning.metrics.distances import Spacing, outward_steps, surface_distances
from bts_lightning.metrics.lesions.measure import LesionScores, measure
from bts_lightning.metrics.lesions.tasks import LesionRules
from bts_lightning.metrics.policies import Floats, Hd95
from bts_lightning.metrics.surface import Words, occupied, pack, peel
from bts_lightning.metrics.threads import in_threads, shares
from bts_lightning.modalities import Scheme

LabelMaps = NDArray[np.uint8]
Box = tuple[range, range, range]


@dataclass(frozen=True, eq=False)
class Masks:
    """Some predictions of a case beside its truth; arrays are subsets × regions.

    Attributes:
        overlap: voxels that prediction and truth have in common.
        found: voxels of the prediction.
        there: voxels of the truth.
        spacing: mm between voxels.
        hd95: the definition that was asked for.
        predicted: the label maps, S×D×H×W.
        truth: D×H×W.
        words: the bits of all masks, with a margin around.
        threads: how many may work.
        scheme: what the values mean.
        lesions: how they are scored, if they are.
        calibration: what was counted of the probabilities, if it was.
    """

    overlap: Floats
    found: Floats
    there: Floats
    spacing: Spacing
    hd95: Hd95
    predicted: LabelMaps
    truth: LabelMaps
    words: Words
    threads: int
    scheme: Scheme
    lesions: LesionRules | None = None
    calibration: Calibration | None = None

    @classmethod
    def of(
        cls,
        predicted: LabelMaps,
        truth: LabelMaps,
        box: Box,
        spacing: Spacing,
        hd95: Hd95,
        threads: int,
        scheme: Scheme,
        lesions: LesionRules | None = None,
        calibration: Calibration | None = None,
    ) -> "Masks":
        """Pack label maps, `surface.most_subsets` at most, and count their voxels."""
        halo = outward_steps(spacing).halo
        corner = (box[0].start, box[1].start, box[2].start)
        words = np.zeros([len(b) + 2 * h for b, h in zip(box, halo, strict=True)], np.uint64)
        members = members_of(scheme)
        counted = in_threads(
            lambda z: pack(predicted, truth, members, corner, halo, z.start, z.stop, words),
            shares(len(box[0]), threads),
            threads,
        )
        pairs = np.sum(counted, axis=0).astype(np.float64)  # S prediction truth
        member = members.astype(np.float64)
        overlap = np.einsum("spt,rp,rt->sr", pairs, member, member)
        found = np.einsum("spt,rp->sr", pairs, member)
        there = np.einsum("spt,rt->sr", pairs, member)
        counts = overlap, found, there
        maps = predicted, truth, words
        return cls(*counts, spacing, hd95, *maps, threads, scheme, lesions, calibration)

    @cached_property
    def distances(self) -> dict[tuple[int, int], tuple[Floats, Floats]]:
        """Squared mm from each surface voxel to the other surface, by (subset, region).

        First those of the prediction's surface to the truth's, then back. A pair is there where
        neither mask is empty.
        """
        halo = outward_steps(self.spacing).halo
        surface = np.zeros_like(self.words)
        points = in_threads(
            lambda z: peel(self.words, halo, z.start, z.stop, surface),
            shares(len(self.words) - 2 * halo[0], self.threads),
            self.threads,
        )
        live = (self.found > 0) & (self.there > 0)
        return surface_distances(surface, np.concatenate(points), live, self.spacing, self.threads)

    @cached_property
    def lesion_scores(self) -> LesionScores:
        """What the metrics of lesions are read from."""
        assert self.lesions is not None
        return measure(
            self.truth, self.predicted, self.spacing, self.lesions, self.threads, self.scheme
        )


def members_of(scheme: Scheme) -> NDArray[np.bool_]:
    """Say which classes make up each region, region × class."""
    regions = scheme.regions.values()
    return np.array([[label in c for label in range(scheme.classes)] for c in regions])


def box_of(predicted: LabelMaps, truth: LabelMaps, threads: int, most: int) -> Box:
    """Find the box of all foreground, one voxel if there is none; refuse labels above `most`."""
    seen = in_threads(
        lambda z: occupied(predicted, truth, z.start, z.stop), shares(len(truth), threads), threads
    )
    if max(largest for *_, largest in seen) > most:
        raise ValueError(f"a label map holds a value above {most}; stored values are 0 to {most}")
    planes = np.concatenate([planes for planes, _, _, _ in seen])
    rows = np.logical_or.reduce([rows for _, rows, _, _ in seen])
    columns = np.logical_or.reduce([columns for _, _, columns, _ in seen])
    return _extent(planes), _extent(rows), _extent(columns)


def _extent(flags: NDArray[np.bool_]) -> range:
    where = np.flatnonzero(flags)
    return range(int(where[0]), int(where[-1]) + 1) if where.size else range(1)
