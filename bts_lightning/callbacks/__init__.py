"""What an experiment names under `callbacks`."""

from bts_lightning.callbacks.epoch_lines import EpochLines
from bts_lightning.callbacks.finite_loss import FiniteLoss
from bts_lightning.callbacks.overlays import Overlays
from bts_lightning.callbacks.preemption import Preemption
from bts_lightning.callbacks.speed_on_cpu import SpeedOnCpu
from bts_lightning.callbacks.subsets import SubsetEvaluation
from bts_lightning.callbacks.throughput import Throughput
from bts_lightning.callbacks.training_bar import TrainingBar

__all__ = [
    "EpochLines",
    "FiniteLoss",
    "Overlays",
    "Preemption",
    "SpeedOnCpu",
    "SubsetEvaluation",
    "Throughput",
    "TrainingBar",
]
