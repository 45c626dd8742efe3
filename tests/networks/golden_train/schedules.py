"""The learning rate of every epoch of the shipped experiments."""

from pathlib import Path

import numpy as np
import torch

from bts_lightning import config as configuration
from tests.networks.conformity import Row, read

LIMIT = 1e-7  # the family of RFNet rounds to single precision


def compare(path: Path) -> list[Row]:
    """Compare the rates of each experiment that the file names, relative to the largest."""
    rows = []
    for name, expected in read(path).items():
        config = configuration.load([name])
        parameters = [torch.nn.Parameter(torch.zeros(1))]
        optimizer = configuration.build(config.task.optimizer)(parameters)
        schedule = configuration.build(config.task.schedule)(optimizer)
        found = []
        for _ in expected:
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        rows.append(Row(name, float(np.abs(found - expected).max() / expected.max()), LIMIT))
    return rows
