"""Repeat a recorded training with the shipped experiment, and compare number by number."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from bts_lightning import config as configuration
from bts_lightning.losses import regions_of, shrunk
from tests.golden.fill_rule import fill, kind_of, make_input
from tests.networks.conformity import Array, Row, config_of, read
from tests.networks.golden_train.names import Layout
from tests.networks.golden_train.rules import make_label, summary

# Relative to the larger of a gradient's norm and this share of the largest one.
SMALL = 1e-4
# The README's, by the precision of the file. `way` is the median over parameters of the error of
# what training changed; it has no limit there.
LIMITS = {
    "float64": {
        "loss": 1e-9,
        "terms": 1e-9,
        "gradient": 1e-6,
        "later gradients": 1e-6,
        "losses": 1e-8,
        "rate": 1e-7,  # the official family rounds to single precision
        "norms": 1e-6,
        "targets": 1e-12,
        "way": 1e-6,
    },
    "float32": {
        "loss": 1e-6,
        "terms": 1e-6,
        "gradient": 5e-3,
        "losses": 3e-3,
        "rate": 1e-7,
        "way": 5e-2,
    },
}
# The hard choice of experts flips at near ties, so that single precision shows less.
LIMITS_OF = {
    ("A2FSeg", "float64"): {"losses": 1e-12},
    ("AMoE-BTS", "float32"): {"gradient": 2e-2},
}


def experiment(config: dict[str, Any]) -> list[str]:
    """Give the words that name our experiment, in the size that was recorded."""
    patch_size, network = f"data.patch={config['size']}", config["network"]
    if network == "A2FSeg":
        return [
            "a2fseg",
            f"net.variant={config['variant_net']}",
            f"net.width={config['width']}",
            f"net.poolings={config['pools']}",
            f"trainer.max_epochs={config['max_epochs']}",
            patch_size,
        ]
    if network == "AMoE-BTS":
        return [
            "amoe_bts",
            "net.gam=official",
            f"net.experts={config['experts']}",
            f"net.top_k={config['top_k']}",
            "net.expert_memory=plain",
            f"trainer.max_epochs={config['epochs']}",
            f"task.schedule.warmup_epochs={config['warmup']}",
            patch_size,
        ]
    family = [
        network.lower(),
        f"net.width={config['width']}",
        f"trainer.max_epochs={config['epochs_of_schedule']}",
        f"task.main_loss_from_epoch={config['fusion_start_epoch']}",
        patch_size,
    ]
    if network == "RFNet":
        return family
    return [
        *family,
        f"net.token_width={config['token']}",
        f"net.hidden={config['mlp']}",
        f"net.heads={config['heads']}",
        f"net.dropout={config['dropout']}",
        f"net.legacy_token_layout={config['legacy_token_layout']}",
    ]


def replay(path: Path, steps: int | None = None) -> list[Row]:
    """Train as the file says and give a row for each kind of number, the worst error of it.

    The first step alone needs no training: it shows loss and gradient of the filled weights.
    """
    config, recorded = config_of(path), read(path)
    with default_dtype(getattr(torch, config["dtype"])):
        training = Training(config, recorded)
        for step in range(steps or len(recorded["loss"])):
            training.step(step)
    limits = LIMITS[config["dtype"]] | LIMITS_OF.get((config["network"], config["dtype"]), {})
    errors = training.errors if steps else training.errors | {"way": [training.way()]}
    return [Row(what, max(errors[what]), limit) for what, limit in limits.items() if what in errors]


class Training:
    """One recorded training under way."""

    def __init__(self, config: dict[str, Any], recorded: dict[str, Array]) -> None:
        self.config, self.recorded = config, recorded
        self.task = configuration.build(configuration.load(experiment(config)).task).train()
        made = self.task.configure_optimizers()
        self.optimizer, self.schedule = made["optimizer"], made["lr_scheduler"]
        self.parameters = dict(self.task.net.named_parameters())
        self.layout = Layout(config["network"], self.parameters)
        self.shapes = [tuple(map(int, str(s).strip("(,)").split(","))) for s in recorded["shapes"]]
        self.ours = [self.layout.rename(str(name)) for name in recorded["names"]]
        with torch.no_grad():
            self._fill()
        self.first = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.errors: dict[str, list[float]] = {}
        count = len(recorded["loss"]) * config["batch"]
        self.images = torch.from_numpy(make_input(config["size"], count))
        self.labels = torch.from_numpy(make_label(config["size"], count, config["variant"]))
        self.masks = torch.from_numpy(recorded.get("masks", np.ones((count, 4), np.bool_)))
        self.moves: set[str] = set()  # parameters whose branch has been seen

    def step(self, step: int) -> None:
        """Train one step, and note the errors of all that was recorded of it."""
        epoch, rate = step // self.config["iters"], self.recorded["lr"][step]
        self._note("rate", abs(self.optimizer.param_groups[0]["lr"] - rate) / max(rate, 1e-30))
        batch = self._batch(step)
        with patch.object(type(self.task), "current_epoch", epoch):
            terms = self.task._step(batch)
        total = torch.stack(list(terms.values())).sum()
        expected = self.recorded["loss"][step]
        error = abs(total.item() - expected) / expected
        self._note("losses", error)
        if step == 0:
            self._note("loss", error)
            self._compare_targets(batch["label"])
        if "terms" in self.recorded:
            self._compare_terms(terms, step, epoch)
        self.optimizer.zero_grad(set_to_none=False)
        total.backward()
        if step in self.recorded["grad_steps"]:
            self._compare_gradients(step)
        if "clip" in self.config:
            norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config["clip"])
            self._note("norms", abs(norm.item() / self.recorded["norms"][step] - 1))
            self._let_absent_branches_be(step)
        self.optimizer.step()
        if (step + 1) % self.config["iters"] == 0:
            self.schedule.step()

    def way(self) -> float:
        """Give the median error of how far each parameter came."""
        moved = {name: p.detach() - self.first[name] for name, p in self.parameters.items()}
        errors = [
            np.abs(summary(self.layout.take(ours, moved).numpy()) - expected).max() / expected[0]
            for ours, expected in zip(self.ours, self.recorded["moved"], strict=True)
            if ours and expected[0] > 0
        ]
        return float(np.median(errors))

    def _fill(self) -> None:
        data = {name: p.data for name, p in self.parameters.items()}
        for official, shape, ours in zip(
            self.recorded["names"], self.shapes, self.ours, strict=True
        ):
            if ours:
                salt = self.config["salt0"] + (self.layout.salt(ours[0]) if len(ours) == 1 else 0)
                value = fill(shape, kind_of(str(official), shape), salt)
                self.layout.put(torch.from_numpy(value).to(data[ours[0]].dtype), ours, data)

    def _batch(self, step: int) -> dict[str, Tensor]:
        size = self.config["batch"]
        rows = slice(step * size, (step + 1) * size)
        return {
            "image": self.images[rows].to(torch.get_default_dtype()),
            "label": self.labels[rows],
            "present": self.masks[rows],
            "available": torch.ones(size, 4, dtype=torch.bool),
        }

    def _compare_targets(self, label: Tensor) -> None:
        for level, expected in enumerate(self.recorded.get("targets0", ())):
            size = [edge // 2**level for edge in label.shape[1:]]
            for region, (total, projection) in zip(
                regions_of(shrunk(label, size))[0].numpy(), expected, strict=True
            ):
                # Recorded is the sum in place of the norm, whose square it is for zeros and ones.
                norm, ours = summary(region)
                self._note("targets", max(abs(norm**2 - total), abs(ours - projection)) / total)

    def _compare_terms(self, terms: dict[str, Tensor], step: int, epoch: int) -> None:
        parts = self.recorded["terms"][step].reshape(3, 2).sum(axis=1)
        main = float(epoch >= self.config["fusion_start_epoch"])
        for names, expected in (
            ("main", main * parts[0]),
            ("modality/", parts[1]),
            (("region_maps/", "deep/"), parts[2]),
        ):
            ours = sum(value.item() for name, value in terms.items() if name.startswith(names))
            if step == 0:
                self._note("terms", abs(ours - expected) / parts.max())

    def _compare_gradients(self, step: int) -> None:
        gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad
                     for n, p in self.parameters.items()}  # fmt: skip
        recorded = self.recorded["grads"][list(self.recorded["grad_steps"]).index(step)]
        largest = np.nanmax(recorded[:, 0])
        for ours, expected in zip(self.ours, recorded, strict=True):
            if ours:
                found = summary(self.layout.take(ours, gradients).numpy())
                expected = np.nan_to_num(expected)  # no gradient there is none here
                error = np.abs(found - expected).max() / max(expected[0], SMALL * largest)
                self._note("later gradients" if step else "gradient", error)

    def _let_absent_branches_be(self, step: int) -> None:
        """Repeat what `zero_grad` does in the torch of the file.

        There a parameter stands still until its branch has been seen (torch before 2), or whenever
        its branch is absent. Ours gives every branch a gradient, of zero where it is absent. A
        branch that is present may have a gradient of zero as well, and then it decays: the scorer
        of the only modality of a sample does.
        """
        always = self.config.get("zero_grad", "").startswith("None")
        size = self.config["batch"]
        seen = self.masks[step * size : (step + 1) * size].any(0)
        for name, parameter in self.parameters.items():
            owner = self.layout.salt(name) // 10  # the place of the modality, from 1; 0: shared
            if not owner or seen[owner - 1]:
                self.moves.add(name)
            elif always or name not in self.moves:
                parameter.grad = None

    def _note(self, what: str, error: float) -> None:
        self.errors.setdefault(what, []).append(float(error))


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Let new tensors have this type for a while."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
