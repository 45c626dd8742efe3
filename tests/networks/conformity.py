"""Compare a network of ours with the recorded outputs of the official code.

How to add a network: write `tests/networks/golden_<network>.py` with a mapping `GOLDEN` from the
`network` entry of the files' config to a `Recorded` (or to any object with the same `masks` and
`check`, as MedMAP needs, whose file has keys of its own). The command `python -m
tests.networks.golden` and `test_golden.py` find it by themselves.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bts_lightning.config import build, load
from bts_lightning.losses import SegmentationLoss
from bts_lightning.modalities import subset_name
from bts_lightning.networks.backbone import Backbone, Output
from bts_lightning.networks.official.state import translate
from bts_lightning.networks.official.table import Table, read_table
from bts_lightning.task import SegmentationTask
from tests.golden.fill_rule import fill, kind_of, make_input, make_label, noise
from tests.networks.double import LeanDouble

FOLDER = Path(__file__).parents[1] / "golden"
# From this many input voxels a file takes minutes on two cores and is left to `make test-all`.
SLOW_FROM = 48**3

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Row:
    """One comparison: `what` differs by `error` (relative) where `limit` is allowed."""

    what: str
    error: float
    limit: float

    @property
    def passed(self) -> bool:
        """Say whether the limit holds; NaN never passes."""
        return self.error <= self.limit


class Check(Protocol):
    """What the command needs of an entry: the masks of a file, and the comparison for one."""

    def masks(self, path: Path) -> int:
        """Count the masks of the file."""

    def check(self, path: Path, index: int) -> list[Row]:
        """Compare the mask of this index."""


@dataclass(frozen=True)
class Lesson:
    """One training pass over the official input, with dropout off.

    Attributes:
        output: what the network gives.
        loss: of the network's experiment.
        label: B×D×H×W.
        total: what the task of the experiment would learn from.
        net: what was trained.
    """

    output: Output
    loss: SegmentationLoss
    label: Tensor
    total: Tensor
    net: Backbone


def plain(name: str) -> int:
    """Give the salt of networks whose files are never salted."""
    return 0


def unowned(name: str) -> int:
    """Give the one salt of networks in which no modality owns a parameter."""
    return 50


@dataclass(frozen=True)
class Recorded:
    """How to rebuild one official network and how far its numbers may lie from ours.

    Attributes:
        build: the network in its official variant, from the config of the file.
        limit: relative L2 error of the logits, and of std and norm of the whole output.
        table: of official names, by its name, or that from the config of the file.
        salt: 10*m + j of a parameter by its name (m = 1..4 owner modality, else 0; j = expert or
            region + 1, else 0).
        dead: parameters of the official network that do nothing and that ours leaves out, from the
            config.
        auxiliary: further tensors by the name they have in the file (without the shape): from the
            network, the features of all four modalities and the features restricted to the mask.
        auxiliary_limit: relative error of the statistics of these.
        salted_limit: the limit for salted files where it differs.
        experiment: whose loss trains the network.
        losses: the recorded loss values by the name they have in the file, from a training pass.
        loss_limit: their error, relative to the value or to 1, whichever is more.
        outliers: share of voxels that may be off by more than 1e-3 standard deviations in salted
            files; None: do not ask.
        in_double: judge in double at once, because single precision amplifies rounding: norms of
            the constant maps of zero images do. A file may hold such logits; `limit` is for them,
            and `auxiliary_limit` for all that the official code gave in single precision.
        stride: of the recorded voxels, where a file's config names another one.
    """

    build: Callable[[dict[str, Any]], Backbone]
    limit: float
    table: str | Callable[[dict[str, Any]], str]
    salt: Callable[[str], int] = plain
    dead: Callable[[dict[str, Any]], int] = lambda config: 0
    auxiliary: Callable[[Backbone, Any, Any], dict[str, Tensor]] | None = None
    auxiliary_limit: float | None = None
    salted_limit: float | None = None
    outliers: float | None = None
    experiment: str = ""
    losses: Callable[[Lesson], dict[str, Tensor]] | None = None
    loss_limit: float = 1e-6
    in_double: bool = False
    stride: int | None = None
    _cache: dict[tuple[Path, torch.dtype], tuple[Backbone, Any]] = field(
        default_factory=dict, compare=False
    )

    def masks(self, path: Path) -> int:
        """Count the masks of the file."""
        return len(read(path)["masks"])

    def network(self, path: Path, dtype: torch.dtype) -> tuple[Backbone, Any]:
        """Build, fill and encode once a file; the last one is kept for its other masks."""
        if (path, dtype) not in self._cache:
            self._cache.clear()
            config = config_of(path)
            net = self.build(config).eval()
            table = self.table_of(config)
            import_filled(net, table, self.salt if config["salted"] else plain)
            image = to_ours(torch.from_numpy(make_input(config["input"][2])), table).to(dtype)
            with torch.no_grad(), LeanDouble():
                features = net.to(dtype).encode(image, torch.ones(1, 4, dtype=torch.bool))
            self._cache[path, dtype] = net, features
        return self._cache[path, dtype]

    def table_of(self, config: dict[str, Any]) -> Table:
        """Read the table of official names."""
        return read_table(self.table if isinstance(self.table, str) else self.table(config))

    def check(self, path: Path, index: int) -> list[Row]:
        """Compare parameter count, logits, statistics and known inner tensors for one mask.

        Kernels of another processor can round the widest sums beyond the limit, so that a miss in
        single precision is judged again in double, with the same single-precision weights.
        """
        if self.in_double:
            return self._compare(path, index, torch.float64)
        rows = self._compare(path, index, torch.float32)
        if all(row.passed for row in rows):
            return rows
        print(f"{path.stem} {mask_name(path, index)}: judging again in double", flush=True)
        return self._compare(path, index, torch.float64)

    def _compare(self, path: Path, index: int, dtype: torch.dtype) -> list[Row]:
        config, golden = config_of(path), read(path)
        net, features = self.network(path, dtype)
        limit = self.salted_limit if config["salted"] and self.salted_limit else self.limit
        count = sum(p.numel() for p in net.parameters()) + self.dead(config)
        seen = features.restrict(torch.from_numpy(golden["masks"][index]).unsqueeze(0))
        with torch.no_grad(), LeanDouble():
            table = self.table_of(config)
            logits = to_official(net.decode(seen).logits, table)[0]
            if table.gives:
                logits = logits[[table.output_order.index(i) for i in range(len(logits))]]
            inner = self.auxiliary(net, features, seen) if self.auxiliary else {}
            inner = {name: to_official(x, table) for name, x in inner.items()}
        key = "out_float64" if self.in_double and "out_float64" in golden else "out"
        step, expected = self.stride or config["stride"], golden[key][index]
        taken = logits[:, ::step, ::step, ::step].numpy()
        rows = [
            Row("parameters", abs(count - config["params"]), 0),
            Row("logits", relative(taken, expected), limit),
            Row("statistics", deviation(statistics(logits), golden[f"{key}_stats"][index]), limit),
        ]
        single = self.auxiliary_limit or limit
        for channel, values in enumerate(logits):
            expected_here = golden["out_channel_stats"][index][channel]
            error = deviation(statistics(values), expected_here)
            rows.append(Row(f"channel {channel}", error, limit if key == "out" else single))
        if config["salted"] and self.outliers is not None:
            off = np.abs(taken - expected) > 1e-3 * expected.std()
            rows.append(Row("outliers", float(off.mean()), self.outliers))
        rows += self._inner_rows(golden, index, inner, single)
        if self.losses is not None:
            values = self.losses(self._learn(net, config, golden["masks"][index]))
            for name, expected in zip(
                golden["loss_names"], golden["loss_values"][index], strict=True
            ):
                error = abs(float(values[str(name)]) - expected) / max(1, abs(expected))
                rows.append(Row(f"loss {name}", error, self.loss_limit))
        return rows

    def _learn(self, net: Backbone, config: dict[str, Any], mask: Array) -> Lesson:
        """Make one pass as the task of the experiment does."""
        loss: SegmentationLoss = build(load([self.experiment]).task.loss)
        task = SegmentationTask(net, loss=loss, optimizer=torch.optim.Adam)
        size, dtype = config["input"][2], next(net.parameters()).dtype
        present, table = torch.from_numpy(mask).unsqueeze(0), self.table_of(config)
        batch = {
            "image": to_ours(torch.from_numpy(make_input(size)), table).to(dtype),
            "label": to_ours(torch.from_numpy(make_label(size)), table),
            "present": present,
            "available": torch.ones_like(present),
        }
        outputs: list[Output] = []
        hook = net.register_forward_hook(lambda module, inputs, output: outputs.append(output))
        net.training = True  # of the network alone: dropout stays off
        with torch.no_grad(), LeanDouble(), hook:
            total = torch.stack(list(task._step(batch).values())).sum()
        net.training = False
        return Lesson(outputs[0], loss, batch["label"], total, net)

    def _inner_rows(
        self, golden: dict[str, Array], index: int, inner: dict[str, Tensor], limit: float
    ) -> Iterator[Row]:
        for name, row, stats in zip(
            golden["aux_names"], golden["aux_mask_index"], golden["aux_stats"], strict=True
        ):
            key = str(name).split()[0]
            if row == index and key in inner:
                yield Row(key, deviation(statistics(inner.pop(key)), stats), limit)


def entries() -> dict[str, Check]:
    """Collect the entries of all `golden_*.py` files next to this one."""
    found: dict[str, Check] = {}
    for path in sorted(Path(__file__).parent.glob("golden_*.py")):
        found.update(import_module(f"tests.networks.{path.stem}").GOLDEN)
    return found


def files(folder: Path = FOLDER, part: str = "") -> list[tuple[Path, Check]]:
    """Pair the files of a folder with the entries of their networks; others are left out."""
    known = entries()
    named = [(path, network_of(path)) for path in recorded(folder, part)]
    return [(path, known[name]) for path, name in named if name in known]


def recorded(folder: Path, part: str = "") -> list[Path]:
    """List the files of a folder, and behind them those of single blocks and terms."""
    found = sorted(folder.glob("*.npz")) + sorted(folder.glob("parts/*.npz"))
    return [path for path in found if part in path.stem]


@lru_cache(maxsize=4)
def read(path: Path) -> dict[str, Array]:
    """Load a golden file."""
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def config_of(path: Path) -> dict[str, Any]:
    """Read what was recorded; files of modules rather than networks have fewer keys."""
    config: dict[str, Any] = {"salted": False} | json.loads(str(read(path)["config"]))
    return config


def network_of(path: Path) -> str:
    """Name whose outputs a file holds; one of terms alone may name no network but itself."""
    return str(config_of(path).get("network", path.stem))


def is_slow(path: Path) -> bool:
    """Say whether a file's input is too large for the quick suite."""
    size = config_of(path).get("input", [0])
    return bool(np.prod(size[2:]) >= SLOW_FROM)


def mask_name(path: Path, index: int) -> str:
    """Name a mask of a file as `t1c+flair`; a file of terms has none."""
    if "masks" not in read(path):
        return "terms"
    return subset_name(read(path)["masks"][index].tolist())


def import_filled(net: torch.nn.Module, table: Table, salt: Callable[[str], int] = plain) -> None:
    """Fill an official state by the rule, under the official names, and import it."""
    ours, official = dict(net.named_parameters()), {}
    for name, place in table.places(ours).items():
        shape = place.shape(ours[name].shape)
        value = fill(shape, kind_of(place.name, shape), salt(name))
        official[place.name] = torch.from_numpy(value)
    net.load_state_dict(translate(official, ours, table).ours, strict=False)


def fill_parameters(net: torch.nn.Module) -> None:
    """Fill a part of a network by the rule, under our names, which the plain salt does not read."""
    for name, parameter in net.named_parameters():
        shape = tuple(parameter.shape)
        parameter.data.copy_(torch.from_numpy(fill(shape, kind_of(name, shape), plain(name))))


def to_ours(x: Tensor, table: Table) -> Tensor:
    """Turn the spatial axes, which come last, from the official order to ours."""
    first = x.dim() - 3
    return x.permute(*range(first), *(first + axis for axis in table.turned))


def to_official(x: Tensor, table: Table) -> Tensor:
    """Turn them back; what has no space stays."""
    first = x.dim() - 3
    back = (first + table.turned.index(axis) for axis in range(3))
    return x.permute(*range(first), *back) if first > 0 else x


def relative(ours: Array, expected: Array) -> float:
    """Give the relative L2 error."""
    difference = ours.astype(np.float64) - expected
    return float(np.linalg.norm(difference) / np.linalg.norm(expected.astype(np.float64)))


def statistics(x: Tensor) -> Array:
    """Give mean, std, minimum, maximum, L2 norm and a fixed projection in double precision."""
    a = x.detach().double().flatten().numpy()
    projection = a @ noise(np.arange(a.size) + 104729) / np.sqrt(a.size)
    return np.array([a.mean(), a.std(), a.min(), a.max(), np.linalg.norm(a), projection])


def deviation(ours: Array, expected: Array) -> float:
    """Give the largest error of std and norm (relative) and of mean and projection (relative to
    std).

    Extremes are left out: they belong to one voxel and say nothing that the norm does not.
    """
    mean, std, _, _, norm, projection = np.abs(ours - expected)
    scale, size = expected[1], expected[4]
    return float(max(mean / scale, std / scale, projection / scale, norm / size))
