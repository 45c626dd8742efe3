"""The label maps of a case in all its subsets: made in two passes, kept on disk below the run."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bts_lightning import runs
from bts_lightning.data.cache.cached_case import CachedCase
from bts_lightning.data.cache.geometry import Box, Geometry, box_around
from bts_lightning.data.cache.nifti import read_nifti, write_nifti
from bts_lightning.data.cache.prediction import write_prediction
from bts_lightning.data.cache.ready import MemoryCase, ReadyCase
from bts_lightning.files import checksum, content, sha256, write_whole
from bts_lightning.inference import Clock, Importance, each_subset
from bts_lightning.inference.windows import axis_starts, window_size
from bts_lightning.metrics.masks import members_of
from bts_lightning.metrics.score import score
from bts_lightning.metrics.table import METRICS
from bts_lightning.modalities import MODALITIES, Subset, subset_name, subsets_within
from bts_lightning.report.shapley import shapley
from bts_lightning.runs.devices import chosen_device
from bts_lightning.runs.ensemble import load_ensemble
from bts_lightning.runs.opening import OpenRun

# Raised when the same weights and files would give other files here.
VERSION = 1
SUMMARY = "summary.json"
# Of the time of a pass; the rest is writing.
_NETWORK = 0.9
# A byte holds a share of one; a heat map shows no more.
_WHOLE = 255


class Stopped(Exception):  # noqa: N818 (no error: somebody opened another case)
    """Somebody does not want these label maps any more."""


@dataclass(frozen=True)
class _Cut:
    """A case as it would be if only some of its images were there: the box is theirs."""

    name: str
    patient: str
    available: Subset
    image: NDArray[np.float16]
    label: NDArray[np.uint8] | None
    geometry: Geometry


class Kept:
    """The files of one case below a run; each is there whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def label_map(self, subset: Subset) -> Path:
        """Name what `bts predict` would write for these images."""
        return self.folder / f"{subset_name(subset)}.nii.gz"

    def entropy(self, subset: Subset) -> Path:
        """Name the entropy of a subset, in 255ths of a bit."""
        return self.folder / f"{subset_name(subset)}_entropy.nii.gz"

    @property
    def disagreement(self) -> Path:
        """Name the share of subsets, in 255ths, that do not say what most of them say."""
        return self.folder / "disagreement.nii.gz"

    def summary(self) -> dict[str, Any] | None:
        """Read what was measured, or give None while that is not finished."""
        try:
            told: dict[str, Any] = json.loads(content(self.folder / SUMMARY))
        except (OSError, ValueError):
            return None
        return told


class MapMaker:
    """The network of one run, and the label maps that it makes of cases.

    Args:
        opened: the run.
        device: `cpu`, `cuda` or `cuda:1`; a GPU if there is one by default.
    """

    def __init__(self, opened: OpenRun, device: str | None = None) -> None:
        # A run of somebody else must not lead what is written here to other places.
        runs.refuse_links(opened.run, "view")
        runs.refuse_strangers(opened.run)
        self.run, self.experiment = opened.run, opened.experiment
        self.device = chosen_device(device)
        self.ensemble = load_ensemble([opened]).to(self.device)
        self.ensemble.admit()
        (self.member,) = self.ensemble.members
        self.recipe = self.ensemble.recipes[0]
        self.scheme = self.member.loss.scheme
        self._weights = sha256(opened.checkpoint)

    def kept(self, case: ReadyCase) -> Kept:
        """Say where the files of a case lie: another place for other weights, files or protocol."""
        facts = [VERSION, self._weights, self.member.protocol.facts(), _mark(case)]
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in case.name)[:80]
        return Kept(self.run / "view" / f"{safe}-{checksum(facts)}")

    def make(
        self,
        case: ReadyCase,
        done: Callable[[Mapping[Subset, dict[str, Any]]], None],
        progress: Callable[[float], None],
    ) -> None:
        """Make and measure all label maps; the full set comes first.

        Args:
            case: as the run wants it prepared.
            done: takes what was measured of subsets whose files are there.
            progress: takes the share of all work that is done, and may raise `Stopped`.
        """
        kept, protocol = self.kept(case), self.member.protocol
        kept.folder.mkdir(parents=True, exist_ok=True)
        passes = _passes(case, self.recipe)
        everything = sum(len(subsets) for subsets, _ in passes)
        rows: dict[Subset, dict[str, Any]] = {}
        weights: list[dict[str, Any]] = []
        finished = 0
        for subsets, box in passes:
            cut = _cut(case, box)
            share = len(subsets) / everything

            def tick(here: float, before: float = finished / everything, s: float = share) -> None:
                progress(before + _NETWORK * s * here)

            clock = _Ticks(tick, self._windows(cut), len(subsets))
            heard = self._listener(cut)
            each = each_subset(
                self.member.net,
                self.member.loss,
                np.array(cut.image),
                cut.available,
                protocol,
                subsets,
                self.device,
                clock,
                heard,
                cut.geometry.origin,
            )
            labels = np.zeros((len(subsets), *case.geometry.size), np.uint8)
            for s, (label, averaged) in enumerate(each):
                write_prediction(cut, label, kept.label_map(subsets[s]))
                self._write_entropy(cut, averaged, kept.entropy(subsets[s]))
                labels[s][_inside(cut.geometry, case.geometry)] = label
                written = (1 - _NETWORK) * (s + 1) / len(subsets)
                progress(finished / everything + share * (_NETWORK + written))
            measured = self._measured(case, subsets, labels)
            if heard:
                weights += _weight_rows(subsets, list(self.scheme.regions), heard)
            rows |= measured
            finished += len(subsets)
            done(measured)
        self._finish(case, kept, rows, weights)

    def _finish(
        self,
        case: ReadyCase,
        kept: Kept,
        rows: Mapping[Subset, dict[str, Any]],
        weights: list[dict[str, Any]],
    ) -> None:
        """Write what needs all label maps, the summary last."""
        affine = np.array(case.geometry.affine)
        write_nifti(_disagreement([kept.label_map(s) for s in rows]), affine, kept.disagreement)
        told = {
            "rows": {subset_name(subset): row for subset, row in rows.items()},
            "weights": weights,
            "shapley": self._shapley(rows),
        }
        write_whole(kept.folder / SUMMARY, json.dumps(told))

    def _measured(
        self, case: ReadyCase, subsets: Sequence[Subset], labels: NDArray[np.uint8]
    ) -> dict[Subset, dict[str, Any]]:
        """Measure volumes and, where there is a truth, Dice and HD95 of each region."""
        voxel = float(np.prod(case.geometry.spacing)) / 1000
        classes = self.scheme.classes
        counts = [np.bincount(one.ravel(), minlength=classes) for one in labels]
        regions = self.scheme.regions
        rows: list[dict[str, Any]] = [
            {"ml": {r: round(float(n[list(c)].sum()) * voxel, 3) for r, c in regions.items()}}
            for n in counts
        ]
        if case.label is not None:
            protocol = self.member.protocol
            scores = score(
                labels,
                np.ascontiguousarray(case.label),
                case.geometry.spacing,
                metrics=[METRICS["dice"], METRICS["hd95"]],
                hd95=protocol.hd95,
                empty=protocol.empty,
                scheme=self.scheme,
            )
            for s, row in enumerate(rows):
                for name in ("dice", "hd95"):
                    values = zip(regions, scores[name][s].tolist(), strict=True)
                    row[name] = {r: round(v, 5) if np.isfinite(v) else None for r, v in values}
        return dict(zip(subsets, rows, strict=True))

    def _shapley(self, rows: Mapping[Subset, dict[str, Any]]) -> dict[str, list[float]] | None:
        """Share the Dice of the full set out to the modalities, in points; see `report.shapley`."""
        every = subsets_within((True,) * len(MODALITIES))
        if not all(subset in rows and "dice" in rows[subset] for subset in every):
            return None
        values = {}
        for region in self.scheme.regions:
            dice = [rows[subset]["dice"][region] for subset in every]
            if None not in dice:
                values[region] = [round(100 * v, 2) for v in shapley(np.array(dice)).tolist()]
        return values

    def _listener(self, case: ReadyCase) -> Importance | None:
        """Hear the weights of modalities in the regions of the truth, if the network has some."""
        if case.label is None or not self.member.net.weighers():
            return None
        return Importance(self.member.net, members_of(self.scheme)[:, np.asarray(case.label)])

    def _windows(self, case: ReadyCase) -> int:
        """Count how many groups of windows a pass has at most."""
        protocol, grid = self.member.protocol, case.geometry.size
        size = window_size(grid, protocol, self.member.net)
        count = prod(
            len(axis_starts(max(n, w), w, protocol.overlap, protocol.windows))
            for n, w in zip(grid, size, strict=True)
        )
        return -(-count // protocol.batch_windows) * (8 if protocol.mirror else 1)

    def _write_entropy(self, case: ReadyCase, averaged: torch.Tensor, out: Path) -> None:
        """Write how unsure the network is of each voxel: of its regions the least sure one."""
        with torch.inference_mode():
            p = self.member.loss.of_regions(averaged)[0].float()
            bits = -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)) / np.log(2)
            heat = (bits.amax(dim=0).clamp(0, 1) * _WHOLE).round().to(torch.uint8).cpu().numpy()
        write_nifti(case.geometry.uncrop(heat), np.array(case.geometry.affine), out)


class _Ticks(Clock):
    """Turn the stages of a pass into its progress."""

    def __init__(self, tick: Callable[[float], None], windows: int, subsets: int) -> None:
        super().__init__()
        self._tick, self._windows, self._subsets = tick, max(1, windows), subsets
        self._encoded = self._decoded = 0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what begins."""
        if name == "encode":
            self._encoded, self._decoded = self._encoded + 1, 0
        elif name == "decode":
            self._decoded += 1
        if name in ("encode", "decode"):
            within = min(0.95, self._decoded / (self._subsets + 1))
            self._tick(min(1.0, (max(0, self._encoded - 1) + within) / self._windows))
        yield


def _passes(case: ReadyCase, recipe: Any) -> list[tuple[list[Subset], Box]]:
    """Order the subsets of a case: all that it has, then the others by size; those of one box go
    through the network together.

    Alone, images have the box of what they show: `bts predict` knows no other. Nearly always all
    images of a case show one brain, and there are two passes.
    """
    full = case.available
    others = [subset for subset in subsets_within(full) if subset != full]
    others.sort(key=sum, reverse=True)
    boxes = _boxes(case, recipe)
    passes: dict[Box, list[Subset]] = {}
    for subset in others:
        passes.setdefault(_hull(boxes, subset), []).append(subset)
    return [([full], _hull(boxes, full)), *((some, box) for box, some in passes.items())]


def _boxes(case: ReadyCase, recipe: Any) -> list[Box]:
    """Give, by modality, the box on the grid of the files that its image would be cut to."""
    whole = case.geometry.box
    # Elsewhere a background is not 0, or the values themselves come from all images together.
    if recipe is None or (recipe.normalisation, recipe.crop) != ("zscore", "brain"):
        return [whole] * len(MODALITIES)
    found = []
    for channel, here in zip(case.image, case.available, strict=True):
        box = box_around(channel != 0) if here else tuple((0, 0) for _ in whole)
        (d0, d1), (h0, h1), (w0, w1) = box
        (d, _), (h, _), (w, _) = whole
        found.append(((d0 + d, d1 + d), (h0 + h, h1 + h), (w0 + w, w1 + w)))
    return found


def _hull(boxes: Sequence[Box], subset: Subset) -> Box:
    """Bound the boxes of the modalities of a subset."""
    mine = [box for box, here in zip(boxes, subset, strict=True) if here]
    d, h, w = (
        (min(box[axis][0] for box in mine), max(box[axis][1] for box in mine)) for axis in range(3)
    )
    return d, h, w


def _cut(case: ReadyCase, box: Box) -> ReadyCase:
    if box == case.geometry.box:
        return case
    geometry = replace(case.geometry, box=box)
    inside = _inside(geometry, case.geometry)
    label = None if case.label is None else np.ascontiguousarray(case.label[inside])
    image = np.ascontiguousarray(case.image[(slice(None), *inside)])
    return _Cut(case.name, case.patient, case.available, image, label, geometry)


def _inside(inner: Geometry, outer: Geometry) -> tuple[slice, ...]:
    """Say where a box lies within another one."""
    return tuple(
        slice(low - start, high - start)
        for (low, high), (start, _) in zip(inner.box, outer.box, strict=True)
    )


def _disagreement(files: Sequence[Path]) -> NDArray[np.uint8]:
    """Count voxel by voxel who does not say what most say; one label map at a time is open."""
    votes: dict[int, NDArray[np.uint8]] = {}
    for file in files:
        labels = read_nifti(file).array
        for value in np.unique(labels).tolist():
            if value not in votes:
                votes[value] = np.zeros(labels.shape, np.uint8)
            votes[value] += labels == value
    most = np.maximum.reduce(list(votes.values()))
    return ((len(files) - most.astype(np.float32)) / len(files) * _WHOLE).round().astype(np.uint8)


def _weight_rows(
    subsets: Sequence[Subset], regions: Sequence[str], heard: Importance
) -> list[dict[str, Any]]:
    """Lay out the weights of modalities, experts added up; NaN of an empty region is left out."""
    rows = []
    for (kind, level), means in heard.means().items():
        for s, subset in enumerate(subsets):
            for r, region in enumerate(regions):
                values = means[s, r].sum(axis=1)
                if np.isfinite(values).all():
                    row = {"subset": subset_name(subset), "region": region}
                    shares = [round(100 * v, 2) for v in values.tolist()]
                    rows.append({**row, "kind": kind, "level": level, "weights": shares})
    return rows


def _mark(case: ReadyCase) -> list[str]:
    """Give the digests of the files that a case was made from."""
    if isinstance(case, CachedCase):
        return [str(source.get("sha256")) for source in case.description["sources"]]
    if isinstance(case, MemoryCase):
        return [*case.digests.values(), subset_name(case.available)]
    raise TypeError(f"{type(case).__name__} does not say which files it comes from")
