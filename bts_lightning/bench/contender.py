"""Who takes part in a race: ways to get patches, and ways to score masks."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from bts_lightning.modalities import REGIONS, SUBSETS

BATCH = 2
ALL = len(SUBSETS) * len(REGIONS)

Values = dict[tuple[int, int], float]


@dataclass(frozen=True)
class Contender:
    """A way to get patches.

    Attributes:
        start: opens it; what it gives yields the number of patches that just arrived.
        ahead: patches that may be waiting when the first one is given; these are not timed.
        cycle: patches after which its work repeats; whole cycles are timed.
    """

    name: str
    start: Callable[[], AbstractContextManager[Iterator[int]]]
    ahead: int = 8
    cycle: int = BATCH


@dataclass
class Scorer:
    """A way to score masks.

    Attributes:
        work: scores some (subset, region) pairs, into `dice` and `hd95`.
        masks: how many pairs a call scores; a case has 45.
        definition: which HD95 of ours it must equal, or `other`.
        rounds: how often it is timed; one for slow ones.
    """

    name: str
    work: Callable[[], object]
    masks: int = ALL
    definition: str = "other"
    rounds: int | None = None
    dice: Values = field(default_factory=dict)
    hd95: Values = field(default_factory=dict)
