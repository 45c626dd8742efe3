"""What the challenges of each year count as a region, a lesion and a miss."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

LesionPolicy = Literal["brats2023", "brats2024", "brats2025"]
POLICIES: tuple[LesionPolicy, ...] = get_args(LesionPolicy)
LesionTask = Literal["gli", "ssa", "men", "met", "ped", "men_rt"]


@dataclass(frozen=True)
class LesionRules:
    """A year's policy and a task of that year."""

    policy: LesionPolicy
    task: LesionTask = "gli"

    @property
    def regions(self) -> Mapping[str, frozenset[int]]:
        """The stored classes of each region that it knows; none where no such task was set."""
        found = TASKS.get((self.policy, self.task))
        return found.regions if found else {}


@dataclass(frozen=True)
class Task:
    """The rules of one challenge.

    Attributes:
        regions: the labels of each.
        dilation: steps by which lesions are grown to tell what belongs to them.
        least: a lesion of the truth counts above this, mm³; the same number of *voxels* is what a
            predicted lesion of 2024 must exceed.
        penalty: mm, the HD95 of a missed or invented lesion; None for the diagonal of the grid.
        merges_predictions: dilate predictions too, and drop those that are small (2024).
        contacts: which tissues a region takes for bridges between its lesions, in this order.
        dilations: of the regions that differ.
        leasts: of the regions that differ.
        counts_false: invented lesions lower the score.
        has_nsd: the challenge prints NSD too.
    """

    regions: Mapping[str, frozenset[int]]
    dilation: int
    least: float
    penalty: float | None
    merges_predictions: bool = False
    contacts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    dilations: Mapping[str, int] = field(default_factory=dict)
    leasts: Mapping[str, float] = field(default_factory=dict)
    counts_false: bool = True
    has_nsd: bool = True

    def only(self, regions: Collection[str]) -> "Task":
        """Leave out what these regions do not need."""
        needed = {*regions, *(tissue for r in regions for tissue in self.contacts.get(r, ()))}
        return replace(self, regions={r: self.regions[r] for r in self.regions if r in needed})


_GLIOMA = {"WT": frozenset({1, 2, 3}), "TC": frozenset({1, 3}), "ET": frozenset({3})}
_TISSUES = {"NETC": frozenset({1}), "SNFH": frozenset({2}), "RC": frozenset({4})}
_CHILDREN = {
    "WT": frozenset({1, 2, 3, 4}),
    "TC": frozenset({1, 2, 3}),
    "ET": frozenset({1}),
    "NETC": frozenset({2}),
    "CC": frozenset({3}),
    "ED": frozenset({4}),
}
_GLI_2023 = Task(_GLIOMA, dilation=3, least=50, penalty=374, has_nsd=False)
_MEN = Task(_GLIOMA, dilation=1, least=50, penalty=374)
_ET_BY_NETC = {"ET": ("NETC",)}

TASKS: dict[tuple[str, str], Task] = {
    ("brats2023", "gli"): _GLI_2023,
    ("brats2023", "ssa"): _GLI_2023,
    ("brats2023", "ped"): _GLI_2023,
    ("brats2023", "men"): replace(_MEN, has_nsd=False),
    ("brats2023", "met"): replace(_GLI_2023, dilation=1, least=2),
    ("brats2024", "gli"): Task(
        _GLIOMA | _TISSUES,
        dilation=3,
        least=20,
        # 374 was meant; the program has 337.
        penalty=337,
        merges_predictions=True,
        contacts={
            "NETC": ("ET", "RC"),
            "ET": ("NETC", "RC"),
            "RC": ("ET", "NETC"),
            "SNFH": ("ET", "RC", "NETC"),
        },
        # SNFH was to have 5 too; a slip in its name leaves it at 3.
        dilations={"NETC": 5, "RC": 5},
        leasts={"ET": 10},
    ),
    ("brats2024", "ssa"): Task(
        _GLIOMA | {"NETC": frozenset({1})},
        dilation=3,
        least=50,
        penalty=374,
        merges_predictions=True,
        contacts=_ET_BY_NETC,
    ),
    ("brats2024", "met"): Task(
        _GLIOMA | {"NETC": frozenset({1}), "RC": frozenset({4})},
        dilation=1,
        least=2,
        penalty=None,
        merges_predictions=True,
        contacts=_ET_BY_NETC,
    ),
    ("brats2024", "ped"): Task(
        _CHILDREN, dilation=5, least=10, penalty=374, merges_predictions=True
    ),
    ("brats2024", "men_rt"): Task(
        {"GTV": frozenset({1})},
        dilation=1,
        least=50,
        penalty=None,
        merges_predictions=True,
        counts_false=False,
    ),
    ("brats2024", "men"): _MEN,
    # Components as they are: nothing is dilated, nothing is too small.
    **{
        ("brats2025", task): Task(_GLIOMA | _TISSUES, dilation=0, least=0, penalty=373)
        for task in ("gli", "ssa", "men", "met")
    },
    ("brats2025", "ped"): Task(_CHILDREN, dilation=0, least=0, penalty=373),
}
