"""How cases are segmented and scored: everything that can change a number of the table."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch

from bts_lightning.errors import ConfigError
from bts_lightning.metrics.calibration.counts import BAND_MM
from bts_lightning.metrics.lesions.tasks import TASKS, LesionPolicy, LesionRules, LesionTask
from bts_lightning.metrics.policies import EmptyPolicy, Hd95
from bts_lightning.modalities import (
    MODALITIES,
    SCHEMES,
    SUBSETS,
    Modality,
    Subset,
    parse_subset,
    subset_name,
)
from bts_lightning.networks.backbone import Backbone

Spacing = Literal["even", "stepped"]
Weighting = Literal["gaussian", "constant"]
Average = Literal["probabilities", "logits"]
SmallET = Literal["erase", "relabel"]
Precision = Literal["32", "bf16", "16"]
Leak = Literal["none", "released"]
Draw = Literal["all", "brasyn"]
# BraSyn, the challenge of missing modalities (github.com/hongweilibran/BraSyn at 1f9529d): the seed
# of its draw, and what a number that is drawn removes (there t1c, t1n, t2f, t2w).
BRASYN_SEED = 123456
BRASYN_REMOVES: tuple[Modality, ...] = ("t1c", "t1", "flair", "t2")
AUTOCAST: dict[Precision, torch.dtype | None] = {
    "32": None,
    "bf16": torch.bfloat16,
    "16": torch.float16,
}


@dataclass(frozen=True)
class Protocol:
    """The evaluation protocol, used by validation and by `bts evaluate` alike.

    Args:
        window: edge of the sliding window in voxels, or its three edges.
        overlap: share of a window that its neighbour covers too.
        windows: `even` spaces them evenly, as nnU-Net does. `stepped` goes from the corner in steps
            of the same length and puts a last one at the end, as MONAI and the RFNet family do.
        weighting: of the probabilities inside a window. `gaussian` has a standard deviation of an
            eighth of the edge, as nnU-Net and MONAI have it.
        average: over windows and views, of `probabilities`, or of `logits` as AMoE-BTS does.
        mirror: average over all eight mirrored views.
        temperature: divides the logits of every window, before anything is averaged: above 1 makes
            probabilities less sure. `fitted` takes the one that `bts evaluate RUN --part val
            --fit-temperature` has kept with the run.
        precision: of the network; probabilities are averaged in single precision anyway.
        subsets: names such as `t1c+flair`; all 15 by default.
        draw: `brasyn` takes exactly one modality from each case, by the draw of the BraSyn
            challenge over the cases in order of their names (there in the order of a folder
            listing, which is no order on most systems). Without synthesis this is what its
            synthesised images have to beat.
        shrink_window: on volumes smaller than the window take the smallest window that covers them
            and fits the network, in place of padding with background. Faster, and another protocol.
        skip_empty: leave out windows in which a subset shows no brain.
        et_minimum: an ET of fewer voxels is taken for a false alarm; 500 in the RFNet family.
        et_small: `erase` makes such an ET background; `relabel` makes it necrosis, so that WT and
            TC stay as they are (DeMoSeg).
        component_minimum: a connected part of the tumour (by faces, edges or corners, all tissues
            together) of fewer voxels is taken for a false alarm and made background, before ET is
            counted.
        lesions: also score lesion by lesion: `brats2023`, `brats2024` or `brats2025`.
        lesion_task: of that challenge: `gli`, `ssa`, `men` or `met`; `ped` or `men_rt` for data of
            that scheme.
        calibration: also measure the probabilities of each region: expected calibration error and
            Brier score over the brain, and over a band around the region's own truth (voxels at
            most 5 mm from its surface), and the entropy inside what is predicted.
        importance: also average over each region what the network weighs its modalities with; a
            network that weighs none is not asked.
        hd95: `pooled` or `directed`, see `bts_lightning.metrics.score`.
        empty: what empty regions score, see `bts_lightning.metrics.policies`.
        leak: `released` also admits a network that sees the images of absent modalities, as some
            released code does. Its numbers answer another question, and every table says so.
        naive: one whole forward pass for each subset and window, to prove what the one pass gives.
        batch_windows: windows encoded at once.
        batch_subsets: subsets decoded at once. By default on a CPU one, where more are slower, or
            all for a network that shares work between them; on a GPU what its memory holds, up to
            7 GB in all. Sums are rounded differently for different sizes: fix it where last digits
            must agree between machines.

    Example:
        >>> Protocol(window=96, subsets=["t1c+flair"]).size
        (96, 96, 96)
    """

    window: int | list[int] = 128
    overlap: float = 0.5
    windows: Spacing = "even"
    weighting: Weighting = "gaussian"
    average: Average = "probabilities"
    mirror: bool = False
    temperature: float | Literal["fitted"] = 1.0
    precision: Precision = "32"
    subsets: list[str] | None = None
    draw: Draw = "all"
    shrink_window: bool = False
    skip_empty: bool = True
    et_minimum: int = 0
    et_small: SmallET = "erase"
    component_minimum: int = 0
    lesions: LesionPolicy | None = None
    lesion_task: LesionTask = "gli"
    calibration: bool = False
    importance: bool = False
    hd95: Hd95 = "pooled"
    empty: EmptyPolicy = "brats"
    leak: Leak = "none"
    naive: bool = False
    batch_windows: int = 1
    batch_subsets: int | None = None

    def __post_init__(self) -> None:
        edges = [self.window] * 3 if isinstance(self.window, int) else list(self.window)
        if len(edges) != 3 or not all(isinstance(n, int) and n > 0 for n in edges):
            raise ConfigError(
                f"window={self.window!r} of the evaluation is neither a positive number of voxels "
                "nor three of them; 128 is usual"
            )
        if not 0 <= self.overlap < 1:
            raise ConfigError(
                f"overlap={self.overlap!r} of the evaluation must be 0 or more and less than 1; "
                "0.5 is usual"
            )
        for name, options in (
            ("windows", Spacing),
            ("weighting", Weighting),
            ("average", Average),
            ("et_small", SmallET),
            ("precision", Precision),
            ("hd95", Hd95),
            ("empty", EmptyPolicy),
            ("leak", Leak),
            ("draw", Draw),
            ("lesion_task", LesionTask),
            *((("lesions", LesionPolicy),) if self.lesions is not None else ()),
        ):
            if getattr(self, name) not in get_args(options):
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} of the evaluation is unknown; "
                    f"it is one of {', '.join(get_args(options))}"
                )
        for name in ("batch_windows", "batch_subsets"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ConfigError(f"{name}={size!r} of the evaluation must be 1 or more")
        if self.temperature != "fitted" and not 0 < self.temperature < math.inf:
            raise ConfigError(
                f"temperature={self.temperature!r} of the evaluation is neither fitted nor a "
                "positive number; 1 leaves probabilities as they are"
            )
        for name, kept in (("et_minimum", "ET, 500 is usual"), ("component_minimum", "part")):
            if getattr(self, name) < 0:
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} of the evaluation is a number of voxels; "
                    f"0 keeps every {kept}"
                )
        if self.subsets is not None and self.draw != "all":
            raise ConfigError(
                f"draw={self.draw} of the evaluation says which subset a case shows, and subsets="
                f"{self.subsets} says it too; set one of them to null or all"
            )
        if self.subsets is not None and not self.subsets:
            raise ConfigError(
                "subsets=[] of the evaluation is empty; leave it out (null) for all 15"
            )
        try:
            chosen = self.chosen_subsets
        except ValueError as error:
            raise ConfigError(f"subsets of the evaluation: {error}") from error
        if len(set(chosen)) < len(chosen):
            raise ConfigError(f"subsets={self.subsets} of the evaluation names one of them twice")

    @property
    def size(self) -> tuple[int, int, int]:
        """The three edges of the window."""
        z, y, x = [self.window] * 3 if isinstance(self.window, int) else self.window
        return z, y, x

    @property
    def chosen_subsets(self) -> list[Subset]:
        """The subsets asked for, in the order asked for."""
        if self.draw == "brasyn":
            return [without(name) for name in BRASYN_REMOVES]
        if self.subsets is None:
            return list(SUBSETS)
        return [parse_subset(name) for name in self.subsets]

    @property
    def divisor(self) -> float:
        """The temperature as a number; only the commands that open a run know the fitted one."""
        if self.temperature == "fitted":
            raise ConfigError(
                "evaluation.temperature=fitted is for `bts evaluate` and `bts predict`, which read "
                "it from a run; a training has none yet: give a number, 1 is usual"
            )
        return self.temperature

    @property
    def lesion_rules(self) -> LesionRules | None:
        """The rules by which lesions are scored, if they are."""
        return LesionRules(self.lesions, self.lesion_task) if self.lesions else None

    def subsets_of(self, cases: Sequence[str]) -> dict[str, list[Subset]]:
        """Give the subsets that each of all cases of an evaluation is asked for."""
        if self.draw == "all":
            return dict.fromkeys(cases, self.chosen_subsets)
        drawn = np.random.RandomState(BRASYN_SEED).randint(0, len(BRASYN_REMOVES), size=len(cases))
        return {
            case: [self.chosen_subsets[number]]
            for case, number in zip(sorted(cases), drawn.tolist(), strict=True)
        }

    def admit(self, net: Backbone, scheme: str = "brats") -> None:
        """Refuse a network that sees what is absent, unless this protocol names that.

        Args:
            scheme: of the labels that it was, or will be, trained on.
        """
        _ = self.divisor  # a training would learn of it at its first validation
        if net.leaks and self.leak == "none":
            raise ConfigError(
                "the network sees the images of absent modalities (net.leak=released), so its "
                "scores are not those of missing modalities; set net.leak=none and train again, "
                "or name the leak: evaluation.leak=released"
            )

        if rules := self.lesion_rules:
            regions = {n: frozenset(c) for n, c in SCHEMES[scheme].regions.items()}
            if not regions.items() <= rules.regions.items():
                raise ConfigError(
                    f"evaluation.lesions={self.lesions} with lesion_task={self.lesion_task} has no "
                    f"rules for the regions of data.scheme={scheme} ({', '.join(regions)}); "
                    f"{_fitting(regions)}"
                )

    def facts(self) -> dict[str, Any]:
        """List what can change a table; how the work is batched is left out."""
        return {
            "window": list(self.size),
            "overlap": self.overlap,
            "weighting": self.weighting,
            "mirror": self.mirror,
            "precision": self.precision,
            "subsets": [subset_name(subset) for subset in self.chosen_subsets],
            "shrink_window": self.shrink_window,
            "skip_empty": self.skip_empty,
            "hd95": self.hd95,
            "empty": self.empty,
            # Named where it is so: tables from before these options read as they did.
            **({"leak": self.leak} if self.leak != "none" else {}),
            **({"windows": self.windows} if self.windows != "even" else {}),
            **({"average": self.average} if self.average != "probabilities" else {}),
            **(
                {"et_minimum": self.et_minimum, "et_small": self.et_small}
                if self.et_minimum
                else {}
            ),
            **({"component_minimum": self.component_minimum} if self.component_minimum else {}),
            **({"draw": self.draw} if self.draw != "all" else {}),
            **({"lesions": self.lesions, "lesion_task": self.lesion_task} if self.lesions else {}),
            **({"temperature": self.temperature} if self.temperature != 1 else {}),
            **({"calibration": True, "calibration_band": BAND_MM} if self.calibration else {}),
            **({"importance": True} if self.importance else {}),
        }


def _fitting(regions: Mapping[str, frozenset[int]]) -> str:
    found = [
        f"{p} with {t}" for (p, t), task in TASKS.items() if regions.items() <= task.regions.items()
    ]
    return f"take one of {', '.join(found)}" if found else "leave them out (null)"


def without(missing: Modality) -> Subset:
    """Give the subset of the three other modalities."""
    t1, t1c, t2, flair = (name != missing for name in MODALITIES)
    return t1, t1c, t2, flair
