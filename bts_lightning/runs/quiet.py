"""Leave out what Lightning says at every start and nobody can act on."""

import logging
import warnings

_NOISE = (
    "GPU available",
    "TPU available",
    "HPU available",
    "💡 Tip",
    "`Trainer.",
    "Restor",
    "Found current",
)
_SPEAKERS = ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.trainer.setup")


def hush() -> None:
    """Filter greetings and warnings about Lightning's own code; everything else is still shown."""
    for name in _SPEAKERS:
        logging.getLogger(name).addFilter(_is_news)
    # Lightning 2.6 uses what torch 2.13 deprecates.
    warnings.filterwarnings("ignore", message=r".*LeafSpec.*is deprecated")
    # A short epoch is no mistake: epochs are as long as the experiment says.
    warnings.filterwarnings("ignore", message=r"The number of training batches .* is smaller")
    # Patches are read by threads; Lightning counts worker processes.
    warnings.filterwarnings("ignore", message=r"The '.*dataloader' does not have many workers")
    # Scores are added up over ranks before they are logged.
    warnings.filterwarnings("ignore", message=r"It is recommended to use `self\.log\('val/")
    # Checkpoints of a run that goes on lie where they always were.
    warnings.filterwarnings("ignore", message=r"Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message=r"The dirpath has changed from")
    # Where there is Slurm, it is said at every training, also at one that needs no srun.
    warnings.filterwarnings("ignore", message=r"The `srun` command is available")


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_NOISE)
