"""What is taken out of a label map as a false alarm: small parts, and a small ET."""

import numpy as np
from numpy.typing import NDArray

from bts_lightning.inference.protocol import Protocol
from bts_lightning.metrics.lesions.components import Frame, components
from bts_lightning.modalities import BACKGROUND, Scheme

Labels = NDArray[np.uint8]


def clean(labels: Labels, protocol: Protocol, scheme: Scheme) -> None:
    """Do to a label map D×H×W, in place, what the protocol wants."""
    if protocol.component_minimum:
        places, sizes = _parts(labels)
        labels.flat[places[sizes < protocol.component_minimum]] = BACKGROUND
    if protocol.et_minimum and "ET" in scheme.paint:
        small = labels == scheme.paint["ET"]
        if 0 < np.count_nonzero(small) < protocol.et_minimum:
            is_erased = protocol.et_small == "erase"
            labels[small] = BACKGROUND if is_erased else scheme.paint["TC"]


def counted_by_size(
    labels: Labels, truth: Labels, minima: NDArray[np.int64], classes: int
) -> NDArray[np.int64]:
    """Count voxels by the size of their part, size × predicted × true class.

    Those of number k lie in parts of at least `minima[k]` voxels and fewer than the next; the sum
    from k on is what stays with `component_minimum=minima[k]`. Background stands in the last one.
    """
    places, sizes = _parts(labels)
    size = np.searchsorted(minima, sizes, side="right") - 1
    shape = (len(minima), classes, classes)
    cells = np.ravel_multi_index((size, labels.flat[places], truth.flat[places]), shape)
    counts = np.bincount(cells, minlength=int(np.prod(shape))).reshape(shape)
    there = np.bincount(truth.ravel(), minlength=classes)
    counts[-1, BACKGROUND] = there - counts.sum(axis=(0, 1))
    return counts


def _parts(labels: Labels) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give the flat places of all that is not background, and the size of each one's part."""
    whole: tuple[int, int, int] = labels.shape
    padded = np.pad(labels != BACKGROUND, 1)
    frame = Frame(padded.shape, (0, 0, 0), whole, (1.0, 1.0, 1.0))
    places = np.flatnonzero(padded)
    numbers = components(places, frame)
    return frame.outside(places), np.bincount(numbers)[numbers]
