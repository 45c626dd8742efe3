"""Count what each experiment of a study, and each pair, gets right on validation cases."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from itertools import combinations
from pathlib import Path
from urllib.parse import quote

import numpy as np
import torch

from bts_lightning.data.cache.prepare import CachedCase
from bts_lightning.errors import UserError
from bts_lightning.files import checksum, content, write_whole
from bts_lightning.inference.cleanup import counted_by_size
from bts_lightning.inference.ensemble import add_up, reads_alike, shared_loss
from bts_lightning.inference.sliding import label_map
from bts_lightning.losses import SegmentationLoss
from bts_lightning.modalities import Subset, subsets_within
from bts_lightning.runs.ensemble import Ensemble, views_of
from bts_lightning.study.choice import PART_MINIMA, Counts

Candidate = tuple[str, ...]


def candidates(names: Sequence[str]) -> list[Candidate]:
    """List the experiments, then all pairs of them."""
    return [*((name,) for name in names), *combinations(names, 2)]


class Counter:
    """Count the voxels of validation cases; what was counted is kept, and not counted again.

    Args:
        ensemble: the networks of all experiments for which these cases are validation cases.
        experiments: of each network.
        prepared: the cases, for each network.
        folder: where counts are kept.
        made: says how they are made: others are counted again.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        experiments: Sequence[str],
        prepared: Sequence[Mapping[str, CachedCase]],
        folder: Path,
        made: str,
    ) -> None:
        self.ensemble, self.prepared, self.folder, self.made = ensemble, prepared, folder, made
        names = list(dict.fromkeys(experiments))
        self.own = {n: [i for i, e in enumerate(experiments) if e == n] for n in names}
        self.candidates = candidates(names)
        self.classes = ensemble.loss.scheme.classes
        self.subsets = ensemble.protocol.chosen_subsets
        self.losses: dict[Candidate, SegmentationLoss] = {}
        for one in self.candidates:
            own = [ensemble.members[i].loss for name in one for i in self.own[name]]
            loss = shared_loss(own)
            # One for all that read alike, so that nothing is added up twice.
            known = (other for other in self.losses.values() if reads_alike(other, loss))
            self.losses[one] = next(known, loss)

    def case(self, name: str, asked: Sequence[Subset]) -> Counts:
        """Give candidate × subset × size × predicted × true class of a case.

        -1 stands where it is not asked for a subset, or cannot show it.
        """
        sizes = len(PART_MINIMA), self.classes, self.classes
        shape = (len(self.candidates), len(self.subsets), *sizes)
        file = self.folder / f"{quote(name, safe='')}.json"
        try:
            kept = json.loads(content(file))
            values, seal = kept["counts"], checksum([self.made, name, kept["counts"]])
            if kept["checksum"] == seal:
                return np.array(values, np.int64).reshape(shape)
        except (OSError, ValueError, LookupError, TypeError):
            pass
        counts = np.full(shape, -1, np.int64)
        within = subsets_within(self.prepared[0][name].available, asked)
        for c, s, counted in self._counted(name, within):
            counts[c, self.subsets.index(within[s])] = counted
        values = counts.ravel().tolist()
        seal = checksum([self.made, name, values])
        write_whole(file, json.dumps({"checksum": seal, "counts": values}) + "\n")
        return counts

    def _counted(self, name: str, subsets: Sequence[Subset]) -> Iterator[tuple[int, int, Counts]]:
        cases = [prepared[name] for prepared in self.prepared]
        truth = cases[0].label
        if truth is None:
            raise UserError(f"the validation case {name} has no label, so nothing is chosen by it")
        box, truth = cases[0].geometry.box, np.ascontiguousarray(truth)
        views = views_of(cases)
        sums: dict[tuple[str, int], list[torch.Tensor]] = {}
        for experiment, own in self.own.items():
            # A pair of losses of two kinds reads regions, so an experiment may be read in two ways.
            ways = {id(loss): loss for one, loss in self.losses.items() if experiment in one}
            members = [self.ensemble.members[i] for i in own]
            added = add_up(
                members,
                [views[i] for i in own],
                box,
                cases[0].available,
                subsets,
                list(ways.values()),
                self.ensemble.device,
            )
            sums |= {(experiment, way): total for way, total in zip(ways, added, strict=True)}
        minima = np.array(PART_MINIMA)
        for c, one in enumerate(self.candidates):
            loss, count = self.losses[one], sum(len(self.own[name]) for name in one)
            for s in range(len(subsets)):
                with torch.inference_mode():
                    averaged = reduce(torch.add, [sums[e, id(loss)][s] for e in one]) / count
                    labels = label_map(loss, averaged, self.ensemble.protocol)
                yield c, s, counted_by_size(labels, truth, minima, self.classes)
