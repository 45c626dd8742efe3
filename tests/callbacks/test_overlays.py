"""The sheet of a validation goes to the run and to W&B."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from bts_lightning.callbacks.overlays import Overlays
from bts_lightning.inference import Protocol
from bts_lightning.losses import RegionLoss
from bts_lightning.networks.unet import UNet


class Board(WandbLogger):
    """A logger of W&B that keeps what it is given, without an account."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, list[Any], dict[str, Any]]] = []

    def log_image(
        self, key: str, images: list[Any], step: int | None = None, **kwargs: Any
    ) -> None:
        self.sent.append((key, images, kwargs))


def test_the_sheet_is_sent_to_wandb_with_its_subsets(tmp_path: Path) -> None:
    board = Board()
    trainer: Any = SimpleNamespace(
        is_global_zero=True,
        sanity_checking=False,
        current_epoch=4,
        default_root_dir=tmp_path,
        loggers=[CSVLogger(tmp_path), board],
    )
    module: Any = SimpleNamespace(
        net=UNet(**UNet.small()), loss=RegionLoss(), device=torch.device("cpu")
    )
    case = SimpleNamespace(
        name="a",
        image=np.ones((4, 16, 16, 16), np.float16),
        label=np.ones((16, 16, 16), np.uint8),
        available=(True,) * 4,
        geometry=SimpleNamespace(origin=(0, 0, 0)),
    )
    overlays = Overlays(Protocol(window=16), subsets=["t1c", "flair"])
    overlays.on_validation_batch_end(trainer, module, None, {"case": case}, 0)
    ((key, images, more),) = board.sent
    sheet = tmp_path / "overlays" / "epoch_0004.png"
    assert (key, images) == ("overlay", [str(sheet)])
    assert sheet.is_file()
    assert more["caption"] == ["a: T1, T1c, T2, FLAIR, truth, then t1c, flair"]
