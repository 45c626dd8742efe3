"""Callbacks that show what a training is doing: scores of all subsets, pictures, throughput."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from numpy.typing import NDArray
from PIL import Image

from bts_lightning.data.cache import CachedCase
from bts_lightning.errors import ConfigError
from bts_lightning.inference import Protocol, segment
from bts_lightning.losses import SegmentationLoss
from bts_lightning.metrics.score import score
from bts_lightning.metrics.training import SubsetScores
from bts_lightning.modalities import (
    MODALITIES,
    REGIONS,
    SHOWN_AS,
    Subset,
    parse_subset,
    subset_name,
    subsets_within,
)
from bts_lightning.networks.backbone import Backbone


class SubsetEvaluation(Callback):
    """Score whole validation cases in all subsets with one pass, exactly under DDP.

    Logs `val/dice/mean` (what checkpoints and sweeps watch: the mean over subsets and regions of
    the mean over cases), the means with and without T1c, and every cell as
    `val/<subset>/<dice|hd95>/<region>`.

    Args:
        protocol: window, overlap and metric policy, the same that `bts evaluate` uses.
        cells: also log each of the 45 Dice and HD95 values.
    """

    def __init__(self, protocol: Protocol, *, cells: bool = True) -> None:
        self.protocol = protocol
        self.cells = cells
        self.subsets: list[Subset] = protocol.chosen_subsets
        self.scores = SubsetScores(len(self.subsets))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse validation cases that cannot be scored, before a training that needs the score."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        cases = [data.cases[name] for name in data.split.val]
        if not any(subsets_within(case.available, self.subsets) for case in cases):
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
        subsets = subsets_within(case.available, self.subsets)
        if not subsets:
            return
        predicted = segment_case(pl_module, case, self.protocol, subsets)
        truth = np.asarray(case.label)
        scores = score(
            predicted,
            truth,
            case.geometry.spacing,
            hd95=self.protocol.hd95,
            empty=self.protocol.empty,
        )
        rows = torch.tensor([self.subsets.index(subset) for subset in subsets])
        self.scores.update(rows, torch.from_numpy(scores.dice), torch.from_numpy(scores.hd95))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add up over ranks and log."""
        dice, hd95 = self.scores.compute()  # S R each, mean over cases, NaN where none
        with_t1c = torch.tensor([s[MODALITIES.index("t1c")] for s in self.subsets])
        logged = {
            "val/dice/mean": dice.nanmean(),
            "val/hd95/mean": hd95.nanmean(),
            "val/dice/with_t1c": dice[with_t1c].nanmean(),
            "val/dice/without_t1c": dice[~with_t1c].nanmean(),
        }
        for r, region in enumerate(REGIONS):
            logged[f"val/dice/{region}"] = dice[:, r].nanmean()
            if self.cells:
                for s, subset in enumerate(self.subsets):
                    logged[f"val/{subset_name(subset)}/dice/{region}"] = dice[s, r]
                    logged[f"val/{subset_name(subset)}/hd95/{region}"] = hd95[s, r]
        # The states were added up over ranks already: every rank logs the same numbers.
        shown = {name: value.float() for name, value in logged.items() if not value.isnan()}
        pl_module.log_dict(
            shown, prog_bar=False, sync_dist=False, batch_size=1, rank_zero_only=False
        )


def segment_case(
    module: LightningModule, case: CachedCase, protocol: Protocol, subsets: Sequence[Subset]
) -> NDArray[np.uint8]:
    """Give the label maps of a case with the network of a task, one for each subset."""
    net, loss = network_of(module)
    return segment(net, loss, case.image, case.available, protocol, subsets, module.device)


def network_of(module: LightningModule) -> tuple[Backbone, SegmentationLoss]:
    """Give the network and the loss of a task, for those who segment with it."""
    net, loss = module.net, module.loss
    assert isinstance(net, Backbone)
    assert isinstance(loss, SegmentationLoss)
    return net, loss


class Throughput(Callback):
    """Log patches a second, the share of time that waits for data, and peak memory.

    Args:
        every_n_steps: steps to average over.
    """

    def __init__(self, *, every_n_steps: int = 20) -> None:
        self.every_n_steps = every_n_steps
        self._ended: float | None = None
        self._waited_before = 0.0
        self._reset()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the time between epochs out."""
        self._ended = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count the time since the last step, and how much of it went into waiting for data."""
        # What stands between two steps may wait for the device instead, so the loader must tell.
        now, waited = time.monotonic(), getattr(trainer.train_dataloader, "waited", 0.0)
        if self._ended is not None:
            self._between += now - self._ended
            self._waited += waited - self._waited_before
        self._began, self._waited_before = now, waited

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log once every so many steps."""
        now = time.monotonic()
        self._worked += now - self._began
        self._patches += len(batch["case"]) * trainer.world_size
        self._steps += 1
        self._ended = now
        if self._steps < self.every_n_steps:
            return
        if pl_module.device.type == "cuda":
            # Kernels of the last steps may still run; the figure must hold them.
            torch.cuda.synchronize()
            self._worked += time.monotonic() - now
            memory = torch.cuda.max_memory_allocated() / 2**30
            pl_module.log("speed/peak_memory_gib", memory, batch_size=1)
        elapsed = self._between + self._worked
        pl_module.log("speed/patches_per_second", self._patches / elapsed, batch_size=1)
        pl_module.log("speed/data_wait_share", self._waited / elapsed, batch_size=1)
        self._ended = time.monotonic()
        self._reset()

    def _reset(self) -> None:
        self._waited = self._between = self._worked = 0.0
        self._patches = self._steps = 0
        self._began = time.monotonic()


class EpochLines(Callback):
    """Print one line an epoch, for logs that are files."""

    def __init__(self) -> None:
        # A training that was resumed in the middle of an epoch does not see this epoch begin.
        self._started = time.monotonic()
        self._is_validated = False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()
        self._is_validated = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember that this epoch has scores of its own."""
        self._is_validated = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print what was measured in this epoch."""
        # Whoever asks first lets the ranks add up, so all must ask, and at the same place.
        metrics = trainer.callback_metrics
        if not trainer.is_global_zero:
            return
        line = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        line += f"  {time.monotonic() - self._started:.0f} s"
        # Lightning keeps the scores of the last validation, however long ago it was.
        scores = ("val/dice/mean", "val/dice/WT", "val/dice/ET") if self._is_validated else ()
        for name in ("train/loss_epoch", *scores):
            if name in metrics:
                line += f"  {name.removesuffix('_epoch')} {float(metrics[name]):.4f}"
        print(line, flush=True)


class Overlays(Callback):
    """Draw the first validation case at every validation: images, truth, and predictions.

    Writes `overlays/epoch_NNN.png` into the run and sends it to W&B if that logs.

    Args:
        protocol: as for the evaluation.
        subsets: which predictions stand beside the truth.
    """

    def __init__(self, protocol: Protocol, *, subsets: list[str] | None = None) -> None:
        self.protocol = protocol
        names = subsets or ["t1+t1c+t2+flair", "t1+t2+flair", "t1c", "flair"]
        self.subsets = [parse_subset(name) for name in names]

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw one sheet, on rank zero."""
        case = batch["case"]
        if batch_idx or not trainer.is_global_zero or case is None or case.label is None:
            return
        if trainer.sanity_checking:
            return
        subsets = subsets_within(case.available, self.subsets)
        if not subsets:
            return
        predicted = segment_case(pl_module, case, self.protocol, subsets)
        sheet = _sheet(np.asarray(case.image), np.asarray(case.label), predicted)
        file = (
            Path(trainer.default_root_dir) / "overlays" / f"epoch_{trainer.current_epoch:04d}.png"
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f".{file.name}")
        sheet.save(unfinished, format="png")
        unfinished.replace(file)
        caption = f"{case.name}: {', '.join(SHOWN_AS.values())}, truth, then " + ", ".join(
            subset_name(s) for s in subsets
        )
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("overlay", [str(file)], caption=[caption])


_COLOURS = np.array([[0, 0, 0], [220, 60, 60], [80, 190, 90], [250, 210, 60]], dtype=np.float32)


def _sheet(image: np.ndarray, label: np.ndarray, predicted: np.ndarray) -> Image.Image:
    """Lay out the slice with most tumour: four images, then truth and predictions in colour."""
    k = int((label > 0).sum(axis=(0, 1)).argmax())
    grey = np.clip((image[:, :, :, k].astype(np.float32) + 2) / 5, 0, 1) * 255
    grey *= image[:, :, :, k] != 0
    tiles = [np.repeat(g[..., None], 3, axis=-1) for g in grey]
    base = tiles[int(np.flatnonzero([t.any() for t in tiles])[-1])]
    for labels in [label[:, :, k], *predicted[:, :, :, k]]:
        tumour = labels > 0
        tiles.append(np.where(tumour[..., None], 0.45 * base + 0.55 * _COLOURS[labels], base))
    # Array axes are left-right and back-front: turn the front up, as radiologists look at it.
    turned = [np.rot90(tile).astype(np.uint8) for tile in tiles]
    return Image.fromarray(np.concatenate(turned, axis=1))
