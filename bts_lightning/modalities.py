"""The vocabulary of the product: four modalities, fifteen subsets, tissues and regions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from torch import Tensor

Modality = Literal["t1", "t1c", "t2", "flair"]
Subset = tuple[bool, bool, bool, bool]

MODALITIES: tuple[Modality, ...] = get_args(Modality)
SHOWN_AS: dict[Modality, str] = {"t1": "T1", "t1c": "T1c", "t2": "T2", "flair": "FLAIR"}

# What labels tell apart. Files say it in numbers of their own, which `data/layouts` reads.
BACKGROUND, NECROSIS, OEDEMA, ENHANCING, CAVITY, CYST, TARGET, NON_ENHANCING = range(8)
TISSUES = {
    BACKGROUND: "background",
    NECROSIS: "necrosis",
    OEDEMA: "oedema",
    ENHANCING: "enhancing tumour",
    CAVITY: "resection cavity",
    CYST: "cyst",
    TARGET: "gross tumour volume",
    NON_ENHANCING: "non-enhancing core",
}


@dataclass(frozen=True)
class Scheme:
    """What is told apart, as which classes it is stored, and which regions are scored.

    Attributes:
        stored: the class of each tissue in the cache, in losses and in label maps; classes count
            from 0 without a gap. A data set with any other tissue cannot be read by this scheme.
        regions: the classes of each, from the outermost to the innermost.
        paint: the class of a voxel that lies in a region, and in none of those that come later.
    """

    stored: Mapping[int, int]
    regions: Mapping[str, tuple[int, ...]]
    paint: Mapping[str, int]

    @property
    def classes(self) -> int:
        """Count the stored classes, background included."""
        return max(self.stored.values()) + 1


_GLIOMA = {tissue: tissue for tissue in (BACKGROUND, NECROSIS, OEDEMA, ENHANCING)}
_OF_GLIOMA = {
    "WT": (NECROSIS, OEDEMA, ENHANCING),
    "TC": (NECROSIS, ENHANCING),
    "ET": (ENHANCING,),
}
_PAINT = {"WT": OEDEMA, "TC": NECROSIS, "ET": ENHANCING}
SCHEMES: dict[str, Scheme] = {
    # The cavity belongs to none of WT, TC and ET, so as background it leaves all three as they are.
    "brats": Scheme(_GLIOMA | {CAVITY: BACKGROUND}, _OF_GLIOMA, _PAINT),
    # Until 2016 necrosis and non-enhancing core were two labels; newer files are read as well.
    "brats2015": Scheme(
        {BACKGROUND: 0, NECROSIS: 1, OEDEMA: 2, NON_ENHANCING: 3, ENHANCING: 4},
        {"WT": (1, 2, 3, 4), "TC": (1, 3, 4), "ET": (4,)},
        {"WT": 2, "TC": 1, "ET": 4},
    ),
    # BraTS 2024 and 2025, glioma after treatment.
    "cavity": Scheme(
        _GLIOMA | {CAVITY: CAVITY}, _OF_GLIOMA | {"RC": (CAVITY,)}, _PAINT | {"RC": CAVITY}
    ),
    # BraTS 2024 and 2025, children; classes as in the files, which the challenge's rules name.
    "ped": Scheme(
        {BACKGROUND: 0, ENHANCING: 1, NECROSIS: 2, CYST: 3, OEDEMA: 4},
        {"WT": (1, 2, 3, 4), "TC": (1, 2, 3), "ET": (1,), "NETC": (2,), "CC": (3,), "ED": (4,)},
        {"WT": 4, "TC": 2, "ET": 1, "NETC": 2, "CC": 3, "ED": 4},
    ),
    # BraTS 2024, meningioma before radiotherapy: T1c alone, and what shall be irradiated.
    "men_rt": Scheme({BACKGROUND: 0, TARGET: 1}, {"GTV": (1,)}, {"GTV": 1}),
}
BRATS = SCHEMES["brats"]
# What every network and every table has, unless the experiment names another scheme.
REGIONS = BRATS.regions
# Of all schemes, in the order of their columns.
REGION_WORDS = {
    "WT": "whole tumour",
    "TC": "tumour core",
    "ET": "enhancing tumour",
    "RC": "resection cavity",
    "NETC": "non-enhancing core",
    "CC": "cyst",
    "ED": "oedema",
    "GTV": "gross tumour volume",
}

# Binary counting order, T1 the high bit, as Table 1 of the A2FSeg paper: 0001 is FLAIR alone.
SUBSETS: tuple[Subset, ...] = tuple(
    (bool(code & 8), bool(code & 4), bool(code & 2), bool(code & 1)) for code in range(1, 16)
)
COMPLETE: Subset = (True, True, True, True)


def subset_name(present: Sequence[bool]) -> str:
    """Name a subset by its modalities in order, as `t1c+flair`."""
    if len(present) != len(MODALITIES) or not any(present):
        raise ValueError(
            f"a subset is {len(MODALITIES)} flags with at least one true, got {present}"
        )
    return "+".join(name for name, here in zip(MODALITIES, present, strict=True) if here)


def parse_subset(name: str) -> Subset:
    """Read `t1c+flair`, in any order and letter case, back into four flags."""
    parts = [part.strip().lower() for part in name.split("+")]
    unknown = [part for part in parts if part not in MODALITIES]
    if unknown or len(set(parts)) != len(parts):
        what = f"unknown modality {unknown[0]!r}" if unknown else "a modality is named twice"
        raise ValueError(
            f"{what} in subset {name!r}; write for example t1c+flair, from {', '.join(MODALITIES)}"
        )
    t1, t1c, t2, flair = (modality in parts for modality in MODALITIES)
    return t1, t1c, t2, flair


def dots(present: Sequence[bool]) -> str:
    """Draw a subset as papers do: ● for a modality that is there, ○ for one that is not."""
    return "".join("●" if here else "○" for here in present)


def marked(name: str) -> str:
    """Draw a named subset below the heads `T1 T1c T2 FLAIR`: `● ○ ○ ●`."""
    return " ".join(dots(parse_subset(name)))


def subsets_within(available: Sequence[bool], subsets: Iterable[Subset] = SUBSETS) -> list[Subset]:
    """Keep the subsets that a case with these modalities can show."""
    return [s for s in subsets if all(a or not p for p, a in zip(s, available, strict=True))]


# The attribute by which flags on a device hold those of the host.
TOLD = "told"


def tell(flags: "Tensor", host: "Tensor") -> "Tensor":
    """Keep beside the flags of a device what the host knows, so that no step waits to read it."""
    if flags is not host:
        setattr(flags, TOLD, host)
    return flags


def on_host(flags: "Tensor") -> "Tensor":
    """Give flags as the host knows them; where nobody told it, it waits for the device."""
    host: Tensor = getattr(flags, TOLD) if hasattr(flags, TOLD) else flags.cpu()
    return host
