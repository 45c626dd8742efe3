"""What `bts bench gpu` measures, and how long each row may take, by arithmetic."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bts_lightning.bench import synthetic
from bts_lightning.bench.network_page import networks
from bts_lightning.bench.race import Recipe
from bts_lightning.bench.result import Cell, Table
from bts_lightning.bench.step import WARM, count_step
from bts_lightning.inference.windows import axis_starts
from bts_lightning.modalities import SUBSETS

# The twin on a processor: the smallest networks, and cases of one or two windows.
SMALL, SMALL_CASE = "+smoke", (24, 20, 16)
MODES = {
    "cpu": ("bf16", "fp32"),
    "cuda": ("fp32", "fp16-last", "bf16-last"),
}
# Of A2FSeg, whose step is a promise. Compilation takes longer than all else, so one row has it; the
# last mode is that of the steps which the loader feeds.
FIRST_MODES = {
    "cpu": MODES["cpu"],  # in half precision a processor takes minutes
    "cuda": ("fp32", "official", "bf16", "fast", "fp16-last", "bf16-last"),
}
STEPS = {"cpu": 1, "cuda": 5}
# Steps that the loader feeds: two numbers of threads, with and without augmentation.
FED = {"cpu": 4 * 5, "cuda": 4 * 9}
OVERLAP = {"cpu": 0.0, "cuda": 0.5}


@dataclass(frozen=True)
class Pace:
    """What is assumed of a machine before anything was measured.

    Attributes:
        half: FLOP/s of a large matrix product in half precision.
        single: the same in single precision, TF32 on a GPU.
        share: of these, what a network reaches.
        mode: seconds to build a network and choose its kernels.
        compiling: seconds to compile one.
        case: seconds of a case beside the network: scores, the first windows.
        loader: seconds of the loader's rows.
        start: seconds until the first row begins.
    """

    half: float
    single: float
    share: float
    mode: float
    compiling: float
    case: float
    loader: float
    start: float


# An H100's data sheet, without sparsity, and two cores (docs/benchmarks.md). The share is half of
# what A2FSeg is to reach; the seconds are guesses.
PACE = {
    "cuda": Pace(989e12, 494e12, 0.15, 1.5, 75, 4, 40, 20),
    "cpu": Pace(0.9e12, 0.2e12, 0.05, 0.5, 60, 2, 25, 10),
}


@dataclass(frozen=True)
class Row:
    """A command of `bts bench`, and what it costs.

    Attributes:
        words: behind `bts bench`, without what all rows share.
        network: of which training steps, or windows, are computed; none where there is no network.
        half: training steps in half precision; a forward pass is a third of one.
        single: those in single precision.
        fixed: seconds beside the arithmetic.
    """

    words: str
    network: str = ""
    patch: int = 0
    half: float = 0.0
    single: float = 0.0
    fixed: float = 0.0

    @property
    def flop(self) -> float:
        """Count all its arithmetic."""
        steps = self.half + self.single
        return steps * count_step(self.network, self.patch, 1) if steps else 0.0

    def seconds(self, pace: Pace) -> float:
        """Say how long it takes at that pace."""
        if not self.network:
            return self.fixed
        one = count_step(self.network, self.patch, 1) / pace.share
        return self.fixed + one * (self.half / pace.half + self.single / pace.single)


def lay_out(networks: Sequence[str], kind: str, pace: Pace) -> list[Row]:
    """Order the rows: what is promised first, then each network's step, then its subsets."""
    names = list(networks) or chosen(kind)
    first = [name for name in names if name.startswith("a2fseg")]
    others = [name for name in names if name not in first]
    return [
        *(step(name, kind, pace) for name in first),
        *(subsets(name, kind, pace) for name in first),
        loader(kind, pace),
        *(step(name, kind, pace) for name in others),
        *(subsets(name, kind, pace) for name in others),
    ]


def chosen(kind: str) -> list[str]:
    """Give an experiment of each class of networks, and A2FSeg as the paper describes it."""
    found: dict[str, str] = {}
    # The form for the largest patch; among such, the one that is named as the class.
    order = sorted(networks(), key=lambda name: (-Recipe(name).patch, len(name), name))
    for name in order:
        found.setdefault(Recipe(name).config.net._target_, name)
    names = sorted(found.values())
    if kind == "cpu":
        return [name + SMALL for name in names]
    return [*names, "a2fseg:variant=paper"]


def patch_of(name: str, kind: str) -> int:
    """Give the published patch, or the smallest of a twin."""
    recipe = Recipe(name)
    if kind == "cuda":
        return recipe.patch
    with torch.device("meta"):
        return max(16, 2 * recipe.net().divisor)


def step(name: str, kind: str, pace: Pace) -> Row:
    """Time a training step in each precision."""
    is_first, patch = name.partition("+")[0] == "a2fseg", patch_of(name, kind)
    modes = FIRST_MODES[kind] if is_first else MODES[kind]
    steps, single, fed = WARM[kind] + STEPS[kind], modes.count("fp32"), FED[kind] * is_first
    words = f"step {name} --patch {patch} --modes {','.join(modes)} --steps {STEPS[kind]}"
    return Row(
        f"{words} {'--loader' if is_first else '--no-loader'}",
        name,
        patch,
        half=steps * (len(modes) - single) + fed * (modes[-1] != "fp32"),
        single=steps * single + fed * (modes[-1] == "fp32"),
        fixed=pace.mode * (len(modes) + is_first) + pace.compiling * modes.count("fast"),
    )


def subsets(name: str, kind: str, pace: Pace) -> Row:
    """Time 15 subsets of a case, loop and one pass."""
    patch, overlap = patch_of(name, kind), OVERLAP[kind]
    case = synthetic.BRAIN if kind == "cuda" else SMALL_CASE
    starts = [axis_starts(max(length, patch), patch, overlap) for length in case]
    # Ours decodes at most as often as the loop.
    passes = 2 * len(SUBSETS) * math.prod(map(len, starts)) / 3
    words = f"subsets {name} --window {patch} --size {'x'.join(map(str, case))}"
    return Row(
        f"{words} --overlap {overlap} --rounds 1",
        name,
        patch,
        half=passes if kind == "cuda" else 0,
        single=passes if kind == "cpu" else 0,
        fixed=pace.case,
    )


def loader(kind: str, pace: Pace) -> Row:
    """Deliver patches from disk to the device, and augment them there."""
    words = "loader --cases 4 --rounds 1"
    small = f" --synthetic --patch 16 --size {'x'.join(map(str, SMALL_CASE))} --seconds 0.3"
    return Row(words + small * (kind == "cpu"), fixed=pace.loader)


def table(rows: Sequence[Row], trainings: dict[str, float], pace: Pace, minutes: float) -> Table:
    """Say what each row costs, and which will not fit."""
    left = 60 * minutes - pace.start - sum(trainings.values())
    cells: list[list[Cell]] = [["start", None, pace.start, ""]]
    for row in rows:
        seconds = row.seconds(pace)
        left -= seconds if (fits := seconds <= left) else 0
        cells.append(
            [f"bts bench {row.words}", row.flop / 1e12, seconds, "" if fits else "left out"]
        )
    cells += [[f"bts train {words}", None, seconds, ""] for words, seconds in trainings.items()]
    cells.append(["all that fit", None, 60 * minutes - left, f"of {60 * minutes:.0f}"])
    shown = (
        f"{pace.half / 1e12:.3g} TFLOP/s in half and {pace.single / 1e12:.3g} in single precision"
    )
    return Table(
        "The plan: arithmetic over an assumed pace; nothing here was measured",
        ["row", "TFLOP", "s", ""],
        cells,
        [
            f"Assumed: {shown}, of which networks reach {pace.share:.0%}; {pace.mode:g} s to build"
            f" a network, {pace.compiling:g} s to compile one. A row begins if the time that is"
            " really left is enough for it; the last training takes all that is left."
        ],
    )
