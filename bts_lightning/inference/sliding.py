"""Slide a window over a case; encode once, decode for every subset."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bts_lightning.errors import UserError
from bts_lightning.inference.averages import Averages
from bts_lightning.inference.cleanup import clean
from bts_lightning.inference.clock import Clock, stage
from bts_lightning.inference.importance import Importance
from bts_lightning.inference.protocol import AUTOCAST, Protocol
from bts_lightning.inference.windows import NOWHERE, Size, lay_out, mirrored
from bts_lightning.losses import SegmentationLoss
from bts_lightning.memory import give_back_freed_memory, is_out_of_memory
from bts_lightning.modalities import Subset, subset_name, subsets_within
from bts_lightning.networks.backbone import Backbone, Features
from bts_lightning.networks.convolutions import OneDNN

# Of the memory that is free when the first subset has been decoded; the rest is for fragmentation.
SHARE_OF_MEMORY = 0.8
# Of a GPU's memory in all: a large card is no reason to shut out what else runs on it.
MOST_BYTES = 7 * 10**9
# Of the finest features on a CPU: from here on what encoding has freed and kept is missed.
LARGE_FEATURES = 2**30
T = TypeVar("T")


def segment(
    net: Backbone,
    loss: SegmentationLoss,
    image: NDArray[Any],
    available: Sequence[bool],
    protocol: Protocol,
    subsets: Sequence[Subset] | None = None,
    device: torch.device | str = "cpu",
    clock: Clock | None = None,
    origin: Size = NOWHERE,
) -> NDArray[np.uint8]:
    """Predict one label map for each subset, S×D×H×W.

    Args:
        net: already on the device; its training flags are left as they were.
        loss: turns logits into probabilities and those into labels.
        image: 4×D×H×W, a memory map too; absent channels may hold anything.
        available: which channels hold an image.
        protocol: window, overlap and so on.
        subsets: by default those of the protocol that the case can show.
        device: where the network is.
        clock: filled with the seconds of `read`, `encode`, `decode`, `accumulate` and `label`.
        origin: the voxel of the files' grid where the image begins, for a network with a `frame`.
    """
    if subsets is None:
        subsets = subsets_within(available, protocol.chosen_subsets)
    labels = np.empty((len(subsets), *image.shape[1:]), np.uint8)
    one_by_one = each_subset(
        net, loss, image, available, protocol, subsets, device, clock, origin=origin
    )
    for s, (label, _) in enumerate(one_by_one):
        labels[s] = label
    return labels


def each_subset(
    net: Backbone,
    loss: SegmentationLoss,
    image: NDArray[Any],
    available: Sequence[bool],
    protocol: Protocol,
    subsets: Sequence[Subset],
    device: torch.device | str = "cpu",
    clock: Clock | None = None,
    importance: Importance | None = None,
    origin: Size = NOWHERE,
) -> Iterator[tuple[NDArray[np.uint8], Tensor]]:
    """Yield label map D×H×W and averaged probabilities 1×C×D×H×W of each subset; see `segment`."""
    each = each_average(
        net, loss, image, available, protocol, subsets, device, clock, importance, origin
    )
    for averaged in each:
        with stage(clock, "label"):
            label = label_map(loss, averaged, protocol)
        yield label, averaged


def each_average(
    net: Backbone,
    loss: SegmentationLoss,
    image: NDArray[Any],
    available: Sequence[bool],
    protocol: Protocol,
    subsets: Sequence[Subset],
    device: torch.device | str = "cpu",
    clock: Clock | None = None,
    importance: Importance | None = None,
    origin: Size = NOWHERE,
) -> Iterator[Tensor]:
    """Yield averaged probabilities 1×C×D×H×W of each subset; see `segment`.

    `importance` hears how modalities are weighed.
    """
    where = torch.device(device)
    averages = _average(
        net, loss, image, available, protocol, subsets, where, clock, importance, origin
    )
    for s in range(len(subsets)):
        with stage(clock, "label"):
            averaged = averages.probabilities(s)
        yield averaged


def each_logits(
    net: Backbone,
    loss: SegmentationLoss,
    image: NDArray[Any],
    available: Sequence[bool],
    protocol: Protocol,
    subsets: Sequence[Subset],
    device: torch.device | str = "cpu",
    origin: Size = NOWHERE,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield averaged logits 1×C×D×H×W of each subset, and where there are any, D×H×W."""
    by_logits = replace(protocol, average="logits")
    where = torch.device(device)
    averages = _average(net, loss, image, available, by_logits, subsets, where, None, origin=origin)
    for s in range(len(subsets)):
        yield averages.inside(s), averages.said(s)


def label_map(loss: SegmentationLoss, averaged: Tensor, protocol: Protocol) -> NDArray[np.uint8]:
    """Read the label map D×H×W off averaged probabilities 1×C×D×H×W, as the protocol wants it."""
    labels: NDArray[np.uint8] = loss.labels(averaged)[0].cpu().numpy()
    clean(labels, protocol, loss.scheme)
    return labels


def _average(
    net: Backbone,
    loss: SegmentationLoss,
    image: NDArray[Any],
    available: Sequence[bool],
    protocol: Protocol,
    subsets: Sequence[Subset],
    device: torch.device,
    clock: Clock | None,
    importance: Importance | None = None,
    origin: Size = NOWHERE,
) -> Averages:
    for subset in subsets:
        if not subsets_within(available, [subset]):
            raise ValueError(
                f"the case has only {subset_name(available)}, which cannot show "
                f"{subset_name(subset)}; choose by `subsets_within`"
            )
    with net.evaluating(), torch.inference_mode(), OneDNN():
        with stage(clock, "read"):
            windows = lay_out(image, available, protocol, net, origin)
            volume = windows.volume.to(device)
            shown = windows.brain @ np.array(subsets, np.bool_).reshape(-1, 4).T  # windows S
            averages = Averages(windows, shown, loss, protocol, device)
        predictor = _Predictor(net, loss, subsets, protocol, averages, device, clock, importance)
        with importance.listening(averages, subsets) if importance else nullcontext():
            for group in _groups(shown, protocol.batch_windows):
                views = [volume[(slice(None), *windows.views[w])] for w in group]
                patch, rows = torch.stack(views).float(), np.flatnonzero(shown[group[0]])
                for axes in _mirrors(protocol.mirror):
                    if importance:
                        importance.enter(group, axes)
                    place = mirrored(windows.place[group], windows.size, axes).to(device)
                    each = predictor.predict(_flip(patch, axes), place, rows)
                    for chunk, predicted in each:
                        with stage(clock, "accumulate"):
                            averages.add(chunk.tolist(), group, _flip(predicted, axes))
                            if importance:
                                importance.add(chunk.tolist())
                        del predicted  # or it would lie beside the features of the next window
    return averages


def _groups(shown: NDArray[np.bool_], most: int) -> Iterator[list[int]]:
    """Batch neighbouring windows that show something to the same subsets; leave empty ones out."""
    for rows, run in itertools.groupby(range(len(shown)), key=lambda w: shown[w].tobytes()):
        windows = list(run)
        if any(rows):  # bytes, so any of them not zero
            yield from (windows[i : i + most] for i in range(0, len(windows), most))


def _mirrors(wanted: bool) -> list[tuple[int, ...]]:
    axes = (-3, -2, -1)
    most = len(axes) if wanted else 0
    return [chosen for n in range(most + 1) for chosen in itertools.combinations(axes, n)]


def _flip(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return x.flip(axes) if axes else x  # without axes `flip` would still copy


class _Predictor:
    """Give the probabilities of windows for many subsets, as many at once as memory allows."""

    def __init__(
        self,
        net: Backbone,
        loss: SegmentationLoss,
        subsets: Sequence[Subset],
        protocol: Protocol,
        averages: Averages,
        device: torch.device,
        clock: Clock | None,
        importance: Importance | None,
    ) -> None:
        self.net, self.loss, self.protocol, self.averages = net, loss, protocol, averages
        self.device, self.clock, self.importance = device, clock, importance
        self.present = torch.tensor(subsets, dtype=torch.bool, device=device).view(-1, 4)
        self.needed = self.present.any(dim=0, keepdim=True)
        self.at_once = protocol.batch_subsets
        if self.at_once is None and device.type != "cuda":
            # On a CPU more at once only leave the caches: 15 at once took 1.0 to 2 times as long.
            # Only views of a single window can share their work; more windows would be copied.
            shares = net.shares_decoding and protocol.batch_windows == 1
            self.at_once = len(subsets) if shares else 1

    def predict(
        self, patch: Tensor, place: Tensor, rows: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Take some of these subsets after the other; give their probabilities, k×B×C×d×h×w."""
        features = None
        while features is None and not self.protocol.naive:
            features = self._attempt("encode", partial(self._encode, patch, place))
        while len(rows):
            if features is None:
                chunk = rows[:1]
                predicted = self._attempt("decode", partial(self._whole_pass, patch, place, chunk))
            else:
                chunk = rows[: self.at_once or 1]
                if _is_large(features):
                    give_back_freed_memory()
                predicted = self._attempt("decode", partial(self._decode, features, chunk))
            if predicted is not None:
                yield chunk, predicted
                rows = rows[len(chunk) :]

    def _begin(self, *, encodes: bool) -> None:
        """Let what an attempt without success told be forgotten."""
        if self.importance:
            self.importance.forget(encoded=encodes)

    def _encode(self, patch: Tensor, place: Tensor) -> Features:
        self._begin(encodes=True)
        return self.net.encode(patch, self.needed.expand(len(patch), -1), place)

    def _decode(self, features: Features, chunk: NDArray[np.int64]) -> Tensor:
        self._begin(encodes=False)
        measure = self.at_once is None
        before = _restart_peak(self.device) if measure else 0
        logits = self.net.decode_subsets(features, self.present[chunk.tolist()])  # S B C D H W
        predicted = self.averages.read(logits.flatten(0, 1))
        if measure:
            one = max(1, torch.cuda.max_memory_allocated(self.device) - before)
            self.at_once = max(1, int(_room(self.device) / one))
        return torch.unflatten(predicted, 0, logits.shape[:2])

    def _whole_pass(self, patch: Tensor, place: Tensor, chunk: NDArray[np.int64]) -> Tensor:
        self._begin(encodes=True)
        present = self.present[chunk.tolist()].expand(len(patch), -1)
        return self.averages.read(self.net(patch, present, place=place).logits).unsqueeze(0)

    def _attempt(self, name: str, work: Callable[[], T]) -> T | None:
        """Do it; where memory ends make room and give None, so that the caller tries again."""
        dtype = AUTOCAST[self.protocol.precision]
        try:
            with (
                stage(self.clock, name),
                torch.autocast(self.device.type, dtype, enabled=dtype is not None),
            ):
                return work()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside the handler, whose traceback would keep alive what the attempt had allocated.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if name == "decode" and self.at_once is not None and self.at_once > 1:
            self.at_once = min(self.at_once, len(self.present)) // 2
        elif not self.averages.leave_device():
            else_do = ", evaluation.precision=bf16 or the CPU" if self.device.type == "cuda" else ""
            raise UserError(
                f"one window of {self.protocol.size} does not fit into the memory of "
                f"{self.device}; take a smaller evaluation.window{else_do}"
            )
        return None


def _is_large(features: Features) -> bool:
    return features.real.device.type == "cpu" and features.levels[0].nbytes >= LARGE_FEATURES


def _restart_peak(device: torch.device) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _room(device: torch.device) -> float:
    """Count the bytes that subsets decoded together may take."""
    allocated = torch.cuda.memory_allocated(device)
    # What the driver has left, and what torch holds unused.
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - allocated
    return min(SHARE_OF_MEMORY * free, MOST_BYTES - allocated)
