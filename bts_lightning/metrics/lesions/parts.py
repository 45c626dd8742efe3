"""The regions of a label map, cut into lesions by the rules of a task."""

import math
from collections.abc import Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bts_lightning.metrics.lesions.components import (
    Frame,
    Places,
    Tags,
    components,
    contacts,
    grown,
    volume,
)
from bts_lightning.metrics.lesions.surfaces import Surface, corner_surface, voxel_surface
from bts_lightning.metrics.lesions.tasks import Task

Labels = NDArray[np.uint8]


class Parts:
    """A region of one label map, cut into lesions; numbers may be missing."""

    def __init__(self, places: Places, numbers: Tags, frame: Frame) -> None:
        """Take a number a voxel."""
        self.places = places
        self.numbers = numbers
        self.frame = frame
        self.sizes = np.bincount(numbers, minlength=1)
        # Places are in C order: the first of a number is its first voxel.
        kept, at = np.unique(numbers, return_index=True)
        firsts = frame.outside(places[at])
        self.firsts: dict[int, int] = dict(zip(kept.tolist(), firsts.tolist(), strict=True))

    @cached_property
    def corners(self) -> Surface:
        """For HD95."""
        return corner_surface(self.places, self.numbers, self.frame)

    @cached_property
    def voxels(self) -> Surface:
        """For NSD."""
        return voxel_surface(self.places, self.numbers, self.frame)


class Truth:
    """A region of the truth, measured once for all predictions."""

    def __init__(self, parts: Parts, reach: Tags) -> None:
        """Take the lesions, and the volume of the same numbers dilated."""
        self.parts = parts
        self.reach = reach
        self.tags = volume(parts.places, parts.numbers, parts.frame)


def cut_truth(labels: Labels, task: Task, frame: Frame) -> dict[str, Truth]:
    """Cut each region of the truth into lesions: what dilation joins is one."""
    cuts, reaches = {}, {}
    for region, places in _regions(labels, task).items():
        reach = grown(places, task.dilations.get(region, task.dilation), frame)
        reached = components(reach, frame)
        cuts[region] = places, volume(reach, reached, frame)[places]
        reaches[region] = reach, reached
    result = {}
    for region, (places, numbers) in cuts.items():
        become = _joined(region, cuts, task, frame)
        reach, reached = reaches[region]
        dilated = volume(reach, become[reached], frame)
        result[region] = Truth(Parts(places, become[numbers], frame), dilated)
    return result


def cut_prediction(labels: Labels, task: Task, frame: Frame) -> dict[str, Parts]:
    """Cut each region of a prediction into components, or into lesions as the task says."""
    cuts = {}
    for region, places in _regions(labels, task).items():
        if not task.merges_predictions:
            cuts[region] = places, components(places, frame)
            continue
        reach = grown(places, task.dilations.get(region, task.dilation), frame)
        numbers = volume(reach, components(reach, frame), frame)[places]
        # Voxels, not mm³ (but for meningiomas of radiotherapy).
        least = task.leasts.get(region, task.least)
        if not task.counts_false:
            least /= math.prod(frame.spacing)
        keeps = (np.bincount(numbers, minlength=1) > least)[numbers]
        cuts[region] = places[keeps], numbers[keeps]
    result = {}
    for region, (places, numbers) in cuts.items():
        result[region] = Parts(places, _joined(region, cuts, task, frame)[numbers], frame)
    return result


def _regions(labels: Labels, task: Task) -> dict[str, Places]:
    """Find the voxels of each region in a box with its margin."""
    flat = labels.ravel()
    # Nearly all is background: one look at it serves all regions.
    there = np.flatnonzero(flat)
    values = flat[there]
    return {region: there[np.isin(values, list(s))] for region, s in task.regions.items()}


def _joined(
    region: str, cuts: Mapping[str, tuple[Places, Tags]], task: Task, frame: Frame
) -> NDArray[np.int32]:
    """Tell what number each lesion takes when other tissues join it to those beside it.

    As the program of 2024 has it: a lesion goes by the lowest partner that it touches, those of one
    partner become one, and a single touching pair joins nothing.
    """
    places, numbers = cuts[region]
    become = np.arange(int(numbers.max(initial=0)) + 1, dtype=np.int32)
    for other in task.contacts.get(region, ()):
        if other not in cuts:
            # The region is here for another one's sake, and nobody asks for its lesions.
            continue
        met = contacts(places, become[numbers], volume(*cuts[other], frame), frame)
        if sum(map(len, met.values())) < 2:
            continue
        lowest: dict[int, int] = {}
        for mine, partners in sorted(met.items()):
            become[become == mine] = lowest.setdefault(min(partners), mine)
    return become


def pairs(left: Tags, right: Tags) -> dict[tuple[int, int], int]:
    """Count which numbers stand at the same places; 0 is no number."""
    both = left > 0
    codes = left[both].astype(np.int64) << 32 | right[both]
    found, counts = np.unique(codes, return_counts=True)
    numbers = zip((found >> 32).tolist(), (found & 0xFFFFFFFF).tolist(), strict=True)
    return dict(zip(numbers, counts.tolist(), strict=True))
