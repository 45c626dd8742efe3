"""Fifteen subsets as the repositories of RFNet and mmFormer evaluate them, in our own words.

A loop over masks, in it one over cases, in it one over windows: the volume is read anew for each
mask; each window runs all four encoders, then fusion and decoder, then the auxiliary heads, whose
output is thrown away; windows come one at a time; the label map is scored, mask by mask.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bts_lightning.inference import Clock, Protocol
from bts_lightning.inference.clock import stage
from bts_lightning.inference.protocol import AUTOCAST
from bts_lightning.inference.windows import importance, lay_out
from bts_lightning.losses import SegmentationLoss
from bts_lightning.modalities import COMPLETE, REGIONS, Subset
from bts_lightning.networks.backbone import Backbone
from bts_lightning.networks.convolutions import OneDNN

Labels = NDArray[np.uint8]


def write_volume(image: NDArray[np.float16], file: Path) -> Path:
    """Store a case as those repositories do: float32, channels last."""
    np.save(file, np.ascontiguousarray(np.asarray(image, np.float32).transpose(1, 2, 3, 0)))
    return file


def segment_naively(
    net: Backbone,
    loss: SegmentationLoss,
    file: Path,
    protocol: Protocol,
    subsets: Sequence[Subset],
    device: torch.device,
    *,
    skip_absent: bool = False,
    auxiliary: bool = True,
    clock: Clock | None = None,
    score: Callable[[int, Labels], object] | None = None,
) -> Labels:
    """Predict the label maps of these subsets, one after the other.

    Args:
        file: what `write_volume` wrote.
        skip_absent: run only the encoders of the subset, as A2FSeg's repository does.
        auxiliary: also compute the heads that only training needs.
        score: called with each label map as soon as it is there.
    """
    everything = torch.tensor([COMPLETE], device=device)
    maps = []
    dtype = AUTOCAST[protocol.precision]
    with (
        torch.inference_mode(),
        OneDNN(),  # as ours: the race is of loops, not of convolutions
        torch.autocast(device.type, dtype, enabled=dtype is not None),
    ):
        for number, subset in enumerate(subsets):
            with stage(clock, "read"):
                # Four contiguous channels again, as the loaders there make them.
                image = np.ascontiguousarray(np.load(file).transpose(3, 0, 1, 2))
                windows = lay_out(image, COMPLETE, protocol, net)
                volume = windows.volume.to(device)
                weight = importance(windows.size, protocol.weighting).to(device)
                size = tuple(volume.shape[1:])
                total = torch.zeros(loss.channels, *size, device=device)
                weights = torch.zeros(size, device=device)
            present = torch.tensor([subset], device=device)
            for view in windows.views:
                patch = volume[(slice(None), *view)].unsqueeze(0)
                with stage(clock, "encode"):
                    features = net.encode(patch, present if skip_absent else everything)
                with stage(clock, "decode"):
                    logits = _decode(net, features.restrict(present), auxiliary)
                    predicted = loss.probabilities(logits)[0]
                with stage(clock, "accumulate"):
                    total[(slice(None), *view)] += predicted * weight
                    weights[view] += weight
            with stage(clock, "label"):
                averaged = (total / weights)[(slice(None), *windows.inside)]
                maps.append(loss.labels(averaged.unsqueeze(0))[0].cpu().numpy())
            if score is not None:
                with stage(clock, "metrics"):
                    score(number, maps[-1])
    return np.stack(maps)


def dice_of(predicted: Labels, truth: Labels) -> list[float]:
    """Score the regions of one label map, one after the other."""
    scores = []
    for members in REGIONS.values():
        found, there = (
            np.logical_or.reduce([labels == member for member in members])
            for labels in (predicted, truth)
        )
        scores.append((2 * (found & there).sum() + 1e-8) / (found.sum() + there.sum() + 1e-8))
    return scores


def _decode(net: Backbone, features: object, auxiliary: bool) -> Tensor:
    # The network's own flag alone brings the heads; its layers, dropout too, stay in evaluation.
    net.training = auxiliary
    try:
        logits: Tensor = net.decode(features).logits  # type: ignore[arg-type]
        return logits
    finally:
        net.training = False
