"""What an experiment names under `callbacks`."""

from bts_lightning.callbacks.finite_loss import FiniteLoss
from bts_lightning.callbacks.overlays import Overlays
from bts_lightning.callbacks.preemption import Preemption
from bts_lightning.callbacks.progress import EpochLines, SpeedOnCpu, Throughput
from bts_lightning.callbacks.subsets import SubsetEvaluation

__all__ = [
    "EpochLines",
    "FiniteLoss",
    "Overlays",
    "Preemption",
    "SpeedOnCpu",
    "SubsetEvaluation",
    "Throughput",
]
