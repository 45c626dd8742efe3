"""Segment and score a whole case with the network of a task, in training and evaluation alike."""

from collections.abc import Iterable, Sequence

import numpy as np
from lightning import LightningModule
from numpy.typing import NDArray
from torch import Tensor

from bts_lightning.data.cache.prepare import CachedCase
from bts_lightning.inference import Importance, Protocol, segment
from bts_lightning.losses import SegmentationLoss
from bts_lightning.metrics.calibration.counts import Calibration
from bts_lightning.metrics.calibration.tally import Tally
from bts_lightning.metrics.lesions.measure import Found
from bts_lightning.metrics.masks import members_of
from bts_lightning.metrics.policies import Floats
from bts_lightning.metrics.score import score
from bts_lightning.metrics.table import Metric
from bts_lightning.modalities import Scheme, Subset
from bts_lightning.networks.backbone import Backbone


def network_of(module: LightningModule) -> tuple[Backbone, SegmentationLoss]:
    """Take the network and the loss out of a task."""
    net, loss = module.net, module.loss
    assert isinstance(net, Backbone)
    assert isinstance(loss, SegmentationLoss)
    return net, loss


def segment_case(
    module: LightningModule,
    case: CachedCase,
    protocol: Protocol,
    subsets: Sequence[Subset],
) -> NDArray[np.uint8]:
    """Predict the label maps of a case, one for each subset."""
    net, loss = network_of(module)
    return segment(
        net,
        loss,
        case.image,
        case.available,
        protocol,
        subsets,
        module.device,
        origin=case.geometry.origin,
    )


def gathered(
    one_by_one: Iterable[tuple[NDArray[np.uint8], Tensor]],
    case: CachedCase,
    subsets: Sequence[Subset],
    loss: SegmentationLoss,
    tally: Tally | None,
) -> NDArray[np.uint8]:
    """Stack the label maps of a case, one for each subset; `tally` takes the probabilities."""
    labels = np.empty((len(subsets), *case.geometry.size), np.uint8)
    for s, (label, averaged) in enumerate(one_by_one):
        labels[s] = label
        if tally:
            tally.add(label, loss.of_regions(averaged)[0].cpu().numpy())
    return labels


def tally_of(case: CachedCase, scheme: Scheme) -> Tally:
    """Make ready to count the probabilities of a labelled case."""
    # What an absent modality holds says nothing.
    brain = (case.image[list(case.available)] != 0).any(axis=0)
    return Tally(np.asarray(case.label), brain, case.geometry.spacing, scheme)


def importance_of(case: CachedCase, net: Backbone, scheme: Scheme) -> Importance | None:
    """Make ready to hear the weights of a labelled case, of a network that has some."""
    if not net.weighers():
        return None
    return Importance(net, members_of(scheme)[:, np.asarray(case.label)])


def score_case(
    case: CachedCase,
    predicted: NDArray[np.uint8],
    protocol: Protocol,
    scheme: Scheme,
    metrics: Sequence[Metric] | None = None,
    each: list[Found] | None = None,
    calibration: Calibration | None = None,
) -> dict[str, Floats]:
    """Measure the label maps of a labelled case as the protocol says."""
    return score(
        predicted,
        np.asarray(case.label),
        case.geometry.spacing,
        metrics=metrics,
        hd95=protocol.hd95,
        empty=protocol.empty,
        lesions=protocol.lesion_rules if metrics is None else None,
        each=each,
        calibration=calibration,
        scheme=scheme,
    )
