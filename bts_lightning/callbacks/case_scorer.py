"""Segment, score and write down one case of an evaluation after the other."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer

from bts_lightning.callbacks.whole_cases import gathered, importance_of, score_case, tally_of
from bts_lightning.data.cache.prepare import CachedCase, write_prediction
from bts_lightning.inference import Importance
from bts_lightning.metrics.calibration.counts import Calibration
from bts_lightning.metrics.lesions.measure import Found
from bts_lightning.modalities import Subset, subset_name, subsets_within
from bts_lightning.report.beside import asked_for
from bts_lightning.report.calibration import bin_rows
from bts_lightning.report.folder import has_rows, write_beside, write_rows
from bts_lightning.report.importance import weight_rows
from bts_lightning.report.lesions import lesion_row
from bts_lightning.report.slices import choose_slices, save_slices
from bts_lightning.runs.ensemble import Ensemble


class CaseScorer(Callback):
    """Segment, score and write down one case after the other; each appears whole or not at all."""

    def __init__(
        self,
        folder: Path,
        ensemble: Ensemble,
        prepared: Sequence[Mapping[str, CachedCase]],
        cases: Sequence[str],
        made: str,
        *,
        predictions: bool = False,
    ) -> None:
        self.folder = folder
        self.made = made
        self.ensemble, self.prepared = ensemble, prepared
        self.protocol = ensemble.protocol
        self.predictions = predictions
        self.asked = self.protocol.subsets_of(cases)
        self.beside = asked_for(self.protocol.facts())

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Do a case that no earlier evaluation has finished."""
        case: CachedCase | None = batch["case"]
        if case is None:
            return
        subsets = subsets_within(case.available, self.asked[case.name])
        if self._is_done(case, subsets):
            return
        if not subsets:
            self._write(case, [], (), {})
            return
        loss = self.ensemble.loss
        scheme = loss.scheme
        tally = tally_of(case, scheme) if self.protocol.calibration and case.is_labelled else None
        views = [own[case.name] for own in self.prepared]
        is_asked = self.protocol.importance and case.is_labelled
        heard = importance_of(case, self.ensemble.members[0].net, scheme) if is_asked else None
        one_by_one = self.ensemble.each_subset(views, subsets, heard)
        predicted = gathered(one_by_one, case, subsets, loss, tally)
        if self._wants_predictions(case):
            for subset, label_map in zip(subsets, predicted, strict=True):
                write_prediction(case, label_map, self._prediction(case, subset))
        if case.label is None:
            self._write(case, [], (), {})
            return
        self._keep_slices(case, subsets, predicted)
        each: list[Found] = []
        counts = tally.counts() if tally else None
        scores = score_case(case, predicted, self.protocol, scheme, each=each, calibration=counts)
        self._write(case, subsets, tuple(scheme.regions), scores, each, counts, heard)

    def _write(
        self,
        case: CachedCase,
        subsets: Sequence[Subset],
        regions: Sequence[str],
        scores: Mapping[str, np.ndarray],
        each: Sequence[Found] = (),
        counts: Calibration | None = None,
        heard: Importance | None = None,
    ) -> None:
        names = [subset_name(subset) for subset in subsets]
        rows = {
            "lesions": [lesion_row(case.name, names, regions, one) for one in each],
            "calibration": bin_rows(case.name, names, regions, counts) if counts else [],
            "importance": weight_rows(case.name, names, regions, heard.means()) if heard else [],
        }
        for kind in self.beside:
            write_beside(self.folder, kind, case.name, rows[kind], self.made)
        write_rows(self.folder, case.name, case.patient, subsets, regions, scores, self.made)

    def _is_done(self, case: CachedCase, subsets: Sequence[Subset]) -> bool:
        """Say whether all that is wanted was written, predictions asked for later included."""
        return has_rows(self.folder, case.name, self.made, self.beside) and (
            not self._wants_predictions(case)
            or all(self._prediction(case, subset).exists() for subset in subsets)
        )

    def _wants_predictions(self, case: CachedCase) -> bool:
        return self.predictions or not case.is_labelled

    def _prediction(self, case: CachedCase, subset: Subset) -> Path:
        return self.folder / "predictions" / subset_name(subset) / f"{case.name}.nii.gz"

    def _keep_slices(
        self, case: CachedCase, subsets: Sequence[Subset], predicted: np.ndarray
    ) -> None:
        geometry, box = case.geometry, case.geometry.box
        slices = choose_slices(
            case.name,
            np.asarray(case.image),
            np.asarray(case.label),
            predicted,
            [subset_name(subset) for subset in subsets],
            spacing=geometry.spacing,
            affine=np.asarray(geometry.affine),
            start=(box[0][0], box[1][0], box[2][0]),
        )
        save_slices(self.folder, slices)
