"""All masks of a case scored lesion by lesion: the truth is measured once."""

import math

import numpy as np

from bts_lightning.metrics.distances import Spacing
from bts_lightning.metrics.lesions.components import Frame
from bts_lightning.metrics.lesions.matched import Matches, match
from bts_lightning.metrics.lesions.merged import RegionScore, score_region
from bts_lightning.metrics.lesions.parts import Labels, cut_prediction, cut_truth
from bts_lightning.metrics.lesions.tasks import Task
from bts_lightning.metrics.threads import in_threads


class CutCase:
    """The label maps of some subsets beside their truth, cut into lesions."""

    def __init__(
        self, truth: Labels, predicted: Labels, spacing: Spacing, task: Task, threads: int = 1
    ) -> None:
        """Cut all label maps.

        Args:
            truth: D×H×W.
            predicted: S×D×H×W.
            spacing: mm.
            task: the rules.
            threads: how many may work.
        """
        self.task = task
        self.threads = threads
        self.diagonal = math.sqrt(sum(length**2 for length in truth.shape))
        box = _box(truth, predicted, max(task.dilation, *task.dilations.values(), 0))
        frame = Frame(
            (len(box[0]) + 2, len(box[1]) + 2, len(box[2]) + 2),
            (box[0].start, box[1].start, box[2].start),
            (truth.shape[0], truth.shape[1], truth.shape[2]),
            spacing,
        )
        inside = tuple(slice(part.start, part.stop) for part in box)
        self.truth = cut_truth(np.pad(truth[inside], 1), task, frame)
        self.predicted = in_threads(
            lambda labels: cut_prediction(np.pad(labels[inside], 1), task, frame),
            predicted,
            threads,
        )

    def scored(self, region: str) -> list[RegionScore]:
        """Score a region in every subset by the rules of 2023 or 2024."""
        penalty = self.diagonal if self.task.penalty is None else self.task.penalty
        parts = [parts[region] for parts in self.predicted]
        in_threads(lambda some: some.corners, parts, self.threads)
        return score_region(
            self.truth[region], parts, self.task, region, penalty=penalty, threads=self.threads
        )

    def matched(self, region: str) -> list[Matches]:
        """Score a region in every subset by the rules of 2025."""
        return match(self.truth[region], [p[region] for p in self.predicted], self.threads)


def _box(truth: Labels, predicted: Labels, margin: int) -> list[range]:
    """Find the box of everything, as wide as dilation reaches and the grid allows."""
    seen = truth > 0
    for labels in predicted:
        seen |= labels > 0
    box = []
    for axis, length in enumerate(truth.shape):
        flags = np.flatnonzero(seen.any(axis=tuple(a for a in range(3) if a != axis)))
        first, last = (int(flags[0]), int(flags[-1])) if flags.size else (0, 0)
        box.append(range(max(0, first - margin), min(length, last + 1 + margin)))
    return box
