"""Pictures of a training: images, truth and predictions of one validation case."""

from pathlib import Path
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from bts_lightning.callbacks.whole_cases import segment_case
from bts_lightning.files import whole
from bts_lightning.inference import Protocol
from bts_lightning.modalities import (
    SHOWN_AS,
    parse_subset,
    subset_name,
    subsets_within,
)


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
        with whole(file) as stream:
            sheet.save(stream, format="png")
        caption = f"{case.name}: {', '.join(SHOWN_AS.values())}, truth, then " + ", ".join(
            subset_name(s) for s in subsets
        )
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("overlay", [str(file)], caption=[caption])


_COLOURS = np.array(
    [[0, 0, 0], [220, 60, 60], [80, 190, 90], [250, 210, 60], [70, 130, 230]], dtype=np.float32
)


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
