"""The vocabulary of the product: four modalities, three regions, fifteen subsets."""

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

Modality = Literal["t1", "t1c", "t2", "flair"]
Region = Literal["WT", "TC", "ET"]
Subset = tuple[bool, bool, bool, bool]

MODALITIES: tuple[Modality, ...] = get_args(Modality)
SHOWN_AS: dict[Modality, str] = {"t1": "T1", "t1c": "T1c", "t2": "T2", "flair": "FLAIR"}

# Stored label values; BraTS files say 4 (until 2021) or 3 (since 2023) for ET, `data/` maps them.
BACKGROUND, NECROSIS, OEDEMA, ENHANCING = 0, 1, 2, 3
REGIONS: dict[Region, tuple[int, ...]] = {
    "WT": (NECROSIS, OEDEMA, ENHANCING),
    "TC": (NECROSIS, ENHANCING),
    "ET": (ENHANCING,),
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
