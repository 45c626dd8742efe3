"""One temperature for all logits of a network, so that its probabilities mean what they say."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

from bts_lightning.inference.protocol import Protocol
from bts_lightning.inference.sliding import each_logits
from bts_lightning.inference.windows import NOWHERE, Size
from bts_lightning.losses import SegmentationLoss
from bts_lightning.losses.segmentation import regions_of
from bts_lightning.modalities import Subset
from bts_lightning.networks.backbone import Backbone

LOWEST, HIGHEST = 0.05, 20.0
GROUPS, THINNED = 5, 10
# Of the logarithm: four digits of a temperature near 1.
_CLOSE = 1e-4


def sample(
    net: Backbone,
    loss: SegmentationLoss,
    image: NDArray[Any],
    available: Sequence[bool],
    label: NDArray[np.uint8],
    protocol: Protocol,
    subsets: Sequence[Subset],
    voxels: int,
    device: torch.device | str = "cpu",
    origin: Size = NOWHERE,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits C×N and labels N of so many voxels of the brain, the same for each subset.

    The logits are averages over windows and views.
    """
    brain = (image[list(available)] != 0).any(axis=0) | (label > 0)
    places = np.flatnonzero(brain)
    if len(places) > voxels:
        places = np.sort(np.random.default_rng(0).choice(places, voxels, replace=False))
    labels = torch.from_numpy(np.asarray(label).ravel()[places])
    plain = replace(protocol, temperature=1.0)
    each = each_logits(net, loss, image, available, plain, subsets, device, origin)
    for logits, said in each:
        there = said.flatten()[places]
        yield logits[0].flatten(1)[:, places][:, there].cpu(), labels[there.cpu()]


def fit(loss: SegmentationLoss, logits: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """Find the temperature of least NLL of the regions; give it, the NLL at 1, and that with it.

    Args:
        loss: owns the way from logits to probabilities of regions.
        logits: C×N.
        labels: N.
    """
    ends = math.log(LOWEST), math.log(HIGHEST)
    found = minimize_scalar(
        lambda of_log: nll(loss, logits, labels, math.exp(of_log)),
        bounds=ends,
        method="bounded",
        options={"xatol": _CLOSE},
    )
    return math.exp(found.x), nll(loss, logits, labels), float(found.fun)


def nll(loss: SegmentationLoss, logits: Tensor, labels: Tensor, temperature: float = 1.0) -> float:
    """Give the mean negative log-likelihood of the regions."""
    spread = logits.double()[None, :, :, None, None]  # B C D H W, of one plane of one row
    truth = regions_of(labels[None, :, None, None], loss.scheme).double()
    inside = loss.of_regions(loss.probabilities(spread / temperature))
    # Rounded sums of labels may lie a little above 1.
    return float(F.binary_cross_entropy(inside.clamp(1e-12, 1 - 1e-12), truth))


def held_out(
    loss: SegmentationLoss, parts: Sequence[tuple[Tensor, Tensor]], patients: Sequence[str]
) -> float | None:
    """Give the NLL of each patient's voxels at the temperature of the others; None of one patient.

    Patients are taken in five groups.

    Args:
        loss: as for `fit`.
        parts: logits C×N and labels N.
        patients: of each part.
    """
    names = list(dict.fromkeys(patients))
    if len(names) < 2:
        return None
    group = [names.index(patient) % GROUPS for patient in patients]
    total, voxels = 0.0, 0
    for number in set(group):
        others, mine = (
            [torch.cat(some, dim=-1) for some in zip(*chosen, strict=True)]
            for chosen in (
                [part for part, own in zip(parts, group, strict=True) if own != number],
                [part for part, own in zip(parts, group, strict=True) if own == number],
            )
        )
        # One number needs few voxels.
        temperature, _, _ = fit(loss, others[0][:, ::THINNED], others[1][::THINNED])
        total += nll(loss, mine[0], mine[1], temperature) * len(mine[1])
        voxels += len(mine[1])
    return total / voxels
