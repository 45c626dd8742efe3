"""Segment, score and write down one case of an evaluation after the other."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from lightning import Callback, LightningModule, Trainer

from bts_lightning.callbacks.subsets import network_of
from bts_lightning.data.cache.prepare import CachedCase, write_prediction
from bts_lightning.files import write_whole
from bts_lightning.inference import Protocol, segment
from bts_lightning.metrics.policies import Floats
from bts_lightning.metrics.score import score
from bts_lightning.modalities import REGIONS, Subset, subset_name, subsets_within
from bts_lightning.report.slices import CaseSlices, choose_slices, save_slices
from bts_lightning.report.table import COLUMNS, VALUES


class CaseScorer(Callback):
    """Segment, score and write down one case after the other; each appears whole or not at all."""

    def __init__(
        self,
        folder: Path,
        protocol: Protocol,
        cases: Sequence[str],
        *,
        predictions: bool = False,
    ) -> None:
        self.folder = folder
        self.protocol = protocol
        self.predictions = predictions
        self.asked = protocol.subsets_of(cases)

    def on_test_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
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
            _write_rows(self.folder, case.name, [])
            return
        net, loss = network_of(pl_module)
        predicted = segment(
            net,
            loss,
            case.image,
            case.available,
            self.protocol,
            subsets,
            pl_module.device,
        )
        if self._wants_predictions(case):
            for subset, label_map in zip(subsets, predicted, strict=True):
                write_prediction(case, label_map, self._prediction(case, subset))
        _write_rows(self.folder, case.name, self._score(case, subsets, predicted))

    def _is_done(self, case: CachedCase, subsets: Sequence[Subset]) -> bool:
        """Say whether all that is wanted was written, predictions asked for later included."""
        file = rows_file(self.folder, case.name)
        # Rows from before a metric was added are made again, or the table would have gaps.
        if not file.exists() or file.read_text().partition("\n")[0] != ",".join(COLUMNS):
            return False
        return not self._wants_predictions(case) or all(
            self._prediction(case, subset).exists() for subset in subsets
        )

    def _wants_predictions(self, case: CachedCase) -> bool:
        return self.predictions or not case.is_labelled

    def _prediction(self, case: CachedCase, subset: Subset) -> Path:
        return self.folder / "predictions" / subset_name(subset) / f"{case.name}.nii.gz"

    def _score(
        self, case: CachedCase, subsets: Sequence[Subset], predicted: np.ndarray
    ) -> list[dict[str, Any]]:
        """Give the rows of a case and keep its slices for the report; without a label nothing."""
        if case.label is None:
            return []
        truth = np.asarray(case.label)
        scores = score(
            predicted,
            truth,
            case.geometry.spacing,
            hd95=self.protocol.hd95,
            empty=self.protocol.empty,
        )
        names = [subset_name(subset) for subset in subsets]
        save_slices(self.folder, _slices(case, truth, predicted, names))
        return case_rows(case.name, subsets, scores)


def case_rows(
    case: str, subsets: Sequence[Subset], scores: dict[str, Floats]
) -> list[dict[str, Any]]:
    """Lay the scores of a case out as rows of the evaluation table."""
    return [
        {
            "case": case,
            "subset": subset_name(subset),
            "region": region,
            **{name: float(scores[name][s, r]) for name in VALUES},
        }
        for s, subset in enumerate(subsets)
        for r, region in enumerate(REGIONS)
    ]


def _slices(
    case: CachedCase, truth: np.ndarray, predicted: np.ndarray, names: list[str]
) -> CaseSlices:
    geometry, box = case.geometry, case.geometry.box
    return choose_slices(
        case.name,
        np.asarray(case.image),
        truth,
        predicted,
        names,
        spacing=geometry.spacing,
        affine=np.asarray(geometry.affine),
        start=(box[0][0], box[1][0], box[2][0]),
    )


def _write_rows(folder: Path, case: str, rows: list[dict[str, Any]]) -> None:
    table = pd.DataFrame(rows, columns=COLUMNS)
    write_whole(rows_file(folder, case), table.to_csv(index=False))


def rows_file(folder: Path, case: str) -> Path:
    """Name the file of one case's rows; quoted, because a manifest may call a case `a/b`."""
    return folder / "rows" / f"{quote(case, safe='')}.csv"
