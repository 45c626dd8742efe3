"""The divergences of U-HVED for every kept subset, and the segmentation losses of NiftyNet."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bts_lightning import config as configuration
from bts_lightning.networks.uhved import subset_divergence
from tests.golden.fill_rule import make_input, noise
from tests.networks.conformity import Row, config_of, read
from tests.networks.golden_train.rules import make_label, summary

LIMIT = 1e-9


def compare(path: Path) -> list[Row]:
    """Compare values, and gradients by norm and projection, relative to the norm."""
    config, recorded = config_of(path), read(path)
    kl, gradients = [], []
    for row, subset in enumerate(recorded["subsets"]):
        gaussians = given(config["channels"], config["size"], config["salt0"]).requires_grad_()
        kept = torch.from_numpy(subset).unsqueeze(0)
        value = subset_divergence(gaussians, torch.ones(1, 4, dtype=torch.bool), kept)
        expected = recorded["inter"][row] + recorded["prior"][row]
        kl.append(abs(value.item() / expected - 1))
        value.backward()
        assert gaussians.grad is not None
        # Recorded are four means, then four log-variances.
        parts = [part for half in gaussians.grad[0].chunk(2, dim=1) for part in half]
        for part, (norm, projection) in zip(parts, recorded["grad"][row], strict=True):
            found = summary(part.numpy())
            gradients.append(max(abs(found[0] - norm), abs(found[1] - projection)) / norm)
    return [
        Row("divergence", max(kl), LIMIT),
        Row("its gradient", max(gradients), LIMIT),
        *compare_segmentation(config["logit_size"], config["variant"], recorded),
    ]


def given(channels: int, size: int, salt: int) -> Tensor:
    """Make means and log-variances, 1×4×2C×S×S×S."""
    shape = (4, 2 * channels, size, size, size)
    index = np.arange(np.prod(shape)) + 31337 + 1000003 * salt
    values = noise(index).reshape(shape)
    values[:, :channels] *= 1.5
    values[:, channels:] *= 0.7
    return torch.from_numpy(values).unsqueeze(0)


def compare_segmentation(size: int, variant: int, recorded: dict[str, np.ndarray]) -> list[Row]:
    """Compare cross entropy and Dice of the experiment, and the gradient of their sum."""
    logits = torch.from_numpy(make_input(size).astype(np.float64)).requires_grad_()
    label = torch.from_numpy(make_label(size, 1, variant))
    node = configuration.load(["uhved"]).task.loss
    entropy, dice = (
        configuration.build({**node, **{other: 0.0}})(logits, label) for other in ("dice", "ce")
    )
    (entropy + dice).backward()
    assert logits.grad is not None
    found, expected = summary(logits.grad.numpy()), recorded["grad_logits"]
    return [
        Row("entropy", abs(entropy.item() / recorded["ce"] - 1), LIMIT),
        Row("dice", abs(dice.item() / recorded["dice"] - 1), LIMIT),
        Row("gradient", float(np.abs(found - expected).max() / expected[0]), LIMIT),
    ]
