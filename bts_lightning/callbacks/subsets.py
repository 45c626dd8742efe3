"""Score whole validation cases in all subsets while training."""

from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer

from bts_lightning.callbacks.whole_cases import network_of, score_case, segment_case
from bts_lightning.errors import ConfigError
from bts_lightning.inference import Protocol
from bts_lightning.metrics.table import TABLE
from bts_lightning.metrics.training import SubsetScores
from bts_lightning.modalities import MODALITIES, REGIONS, Subset, subset_name, subsets_within

VALIDATED = [metric for metric in TABLE if metric.in_validation]


class SubsetEvaluation(Callback):
    """Score whole validation cases in all subsets with one pass, exactly under DDP.

    Logs `val/dice/mean` (what checkpoints and sweeps watch: the mean over subsets and regions of
    the mean over cases), the means with and without T1c, and every cell as
    `val/<subset>/<metric>/<region>`, for the metrics that the table of metrics says.

    Args:
        protocol: window, overlap and metric policy, the same that `bts evaluate` uses.
        cells: also log each of the 45 values of a metric.
    """

    def __init__(self, protocol: Protocol, *, cells: bool = True) -> None:
        self.protocol = protocol
        self.cells = cells
        self.subsets: list[Subset] = protocol.chosen_subsets
        self.regions: tuple[str, ...] = tuple(REGIONS)
        self.scores = SubsetScores(len(VALIDATED), len(self.subsets))
        self._asked: dict[str, list[Subset]] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse validation cases that cannot be scored, before a training that needs the score."""
        net, loss = network_of(pl_module)
        self.protocol.admit(net, loss.scheme_name)
        self.regions = tuple(loss.scheme.regions)
        self.scores = SubsetScores(len(VALIDATED), len(self.subsets), len(self.regions))
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._asked = self.protocol.subsets_of(data.split.val)
        cases = [data.cases[name] for name in data.split.val]
        if not any(subsets_within(case.available, self._asked[case.name]) for case in cases):
            raise ConfigError(
                f"none of the {len(cases)} validation cases has one of evaluation.subsets, so no "
                "checkpoint can be the best; change them or data.split, or train without: "
                "callbacks.subsets=null callbacks.best=null"
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last validation."""
        self.scores = self.scores.to(pl_module.device)
        self.scores.reset()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Segment and score one case."""
        case = batch["case"]
        if case is None or case.label is None:
            return
        subsets = subsets_within(case.available, self._asked.get(case.name, self.subsets))
        if not subsets:
            return
        _, loss = network_of(pl_module)
        predicted = segment_case(pl_module, case, self.protocol, subsets)
        scores = score_case(case, predicted, self.protocol, loss.scheme, VALIDATED)
        rows = torch.tensor([self.subsets.index(subset) for subset in subsets])
        values = np.stack([scores[metric.name] for metric in VALIDATED])
        self.scores.update(rows, torch.from_numpy(values))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add up over ranks and log."""
        with_t1c = torch.tensor([s[MODALITIES.index("t1c")] for s in self.subsets])
        logged = {}
        for metric, means in zip(VALIDATED, self.scores.compute(), strict=True):
            name = metric.name
            logged[f"val/{name}/mean"] = means.nanmean()  # S R, NaN where no case has a value
            logged[f"val/{name}/with_t1c"] = means[with_t1c].nanmean()
            logged[f"val/{name}/without_t1c"] = means[~with_t1c].nanmean()
            for r, region in enumerate(self.regions):
                logged[f"val/{name}/{region}"] = means[:, r].nanmean()
                for s, subset in enumerate(self.subsets if self.cells else ()):
                    logged[f"val/{subset_name(subset)}/{name}/{region}"] = means[s, r]
        # The states were added up over ranks already: every rank logs the same numbers.
        shown = {name: value.float() for name, value in logged.items() if not value.isnan()}
        pl_module.log_dict(
            shown, prog_bar=False, sync_dist=False, batch_size=1, rank_zero_only=False
        )
