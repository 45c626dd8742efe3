"""Which cases train, which choose the checkpoint, which are scored; no patient does two."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol

from bts_lightning.errors import ConfigError, DataError, did_you_mean
from bts_lightning.files import checksum, content, write_whole

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")
# A2FSeg's shares, 70 % to train, 10 % to validate, 20 % to test.
FRACTIONS = (0.7, 0.1, 0.2)
# RFNet's lists put the grade, which was a folder until 2019, before the names of 2020.
_GRADE = re.compile(r"^(HGG|LGG|HG|LG)[_/]", re.IGNORECASE)
_FOLD = re.compile(r"fold (\d+) of (\d+)")


class SplitCase(Protocol):
    """What a split needs to know of a case."""

    @property
    def name(self) -> str: ...
    @property
    def patient(self) -> str: ...
    @property
    def is_labelled(self) -> bool: ...


@dataclass(frozen=True)
class Split:
    """Three lists of case names without a patient in common.

    Attributes:
        name: how it was made, `random 0` or `fold 1 of 5, seed 0`, to stand in tables.
        fingerprint: of the data set that it was made for.
        missing: names in the lists it was read from that the data set does not have.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    name: str
    fingerprint: str
    missing: tuple[str, ...] = ()

    @property
    def lists_fingerprint(self) -> str:
        """Name the lists of cases themselves, whatever they are called and wherever they lie."""
        lists = [getattr(self, part) for part in PARTS]
        return checksum(lists)

    @property
    def checksum(self) -> str:
        """Name all that is saved, so that a damaged file is not taken for another split."""
        return checksum(asdict(self))

    def save(self, path: Path) -> None:
        """Write it as JSON, whole or not at all."""
        saved = {**asdict(self), "checksum": self.checksum}
        write_whole(path, json.dumps(saved, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Split":
        """Read what `save` wrote."""
        try:
            saved = json.loads(content(path))
            split = cls(
                **{part: tuple(map(str, saved[part])) for part in PARTS},
                name=str(saved["name"]),
                fingerprint=str(saved["fingerprint"]),
                missing=tuple(map(str, saved.get("missing", ()))),
            )
        except (
            OSError,
            RecursionError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
        ) as error:
            kind = type(error).__name__
            raise DataError(
                f"{path} is no split that this program saved ({kind}: {error})"
            ) from error
        # One from before this version, or made by hand, has none.
        if saved.get("checksum", split.checksum) != split.checksum:
            raise DataError(
                f"{path} is not as it was saved; if you have edited it, take out its `checksum`"
            )
        return split


def split_from(
    value: str | Mapping[str, str],
    cases: Sequence[SplitCase],
    *,
    fingerprint: str,
    seed: int = 0,
    missing: Literal["error", "skip"] = "error",
) -> Split:
    """Make the split that a configuration names.

    Args:
        value: `random`; `fold 2 of 5`; the path of a saved split; or a mapping train, val, test to
            text files with a case name a line.
        missing: what to do about names in a list that the data set does not have.
    """
    labelled = [case for case in cases if case.is_labelled]
    if not isinstance(value, str):
        return read_lists(value, cases, fingerprint=fingerprint, missing=missing)
    if value == "random":
        return random_split(labelled, fingerprint=fingerprint, seed=seed)
    if fold := _FOLD.fullmatch(value):
        number, count = int(fold[1]), int(fold[2])
        return fold_split(labelled, number, count, fingerprint=fingerprint, seed=seed)
    if value.endswith(".json"):
        saved = Split.load(Path(value))
        lists = {part: getattr(saved, part) for part in PARTS}
        return _checked(lists, cases, saved.name, fingerprint, missing)
    raise ConfigError(
        f"split is {value!r}; write `random`, `fold 1 of 5`, the path of a saved split.json, or a "
        "mapping of train, val and test to list files"
    )


def random_split(
    cases: Sequence[SplitCase],
    *,
    fingerprint: str,
    seed: int = 0,
    fractions: Sequence[float] = FRACTIONS,
) -> Split:
    """Share patients out by chance; the same seed and patients give the same split everywhere."""
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ConfigError(f"fractions is {fractions}; give three that add up to 1, as {FRACTIONS}")
    patients = _shuffled(cases, seed)
    ends = [round(len(patients) * (1 - fractions[2])), len(patients)]
    ends.insert(0, ends[0] - round(len(patients) * fractions[1]))
    # A part that is asked for gets a patient, however few there are.
    if fractions[2] and ends[1] == len(patients):
        ends[:2] = [ends[0] - 1, ends[1] - 1]
    if fractions[1] and ends[0] == ends[1]:
        ends[0] -= 1
    if ends[0] < (1 if fractions[0] else 0):
        raise DataError(
            f"{len(patients)} labelled patients cannot be split into {', '.join(PARTS)}; "
            "three or more are needed"
        )
    groups = patients[: ends[0]], patients[ends[0] : ends[1]], patients[ends[1] :]
    lists = {part: _names(cases, group) for part, group in zip(PARTS, groups, strict=True)}
    return _checked(lists, cases, f"random, seed {seed}", fingerprint, "error")


def fold_split(
    cases: Sequence[SplitCase], number: int, count: int, *, fingerprint: str, seed: int = 0
) -> Split:
    """Test on one of `count` equal parts, validate on the next, train on the others.

    Over all folds each case is tested once, by a network that was not chosen on it.
    """
    patients = _shuffled(cases, seed)
    if count < 3 or not 1 <= number <= count:
        raise ConfigError(
            f"split is `fold {number} of {count}`; there are 3 folds or more, counted from 1"
        )
    if count > len(patients):
        raise DataError(f"{len(patients)} labelled patients are too few for {count} folds")
    folds = [patients[start::count] for start in range(count)]
    test, val = number - 1, number % count
    train = [p for k, fold in enumerate(folds) if k not in (test, val) for p in fold]
    lists: dict[Part, tuple[str, ...]] = {
        "train": _names(cases, train),
        "val": _names(cases, folds[val]),
        "test": _names(cases, folds[test]),
    }
    return _checked(lists, cases, f"fold {number} of {count}, seed {seed}", fingerprint, "error")


def read_lists(
    files: Mapping[str, str],
    cases: Sequence[SplitCase],
    *,
    fingerprint: str,
    missing: Literal["error", "skip"] = "error",
) -> Split:
    """Read text files with a case name a line, as RFNet, mmFormer and M2FTrans publish theirs."""
    for part in files:
        if part not in PARTS:
            raise ConfigError(f"split has {part!r}; {did_you_mean(part, PARTS)}")
    lists: dict[Part, tuple[str, ...]] = {}
    for part in PARTS:
        path = Path(files[part]) if part in files else None
        try:
            lines = content(path).decode().splitlines() if path else []
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{path}, the {part} list of the split, cannot be read: {error}"
            ) from error
        lists[part] = tuple(line.strip() for line in lines if line.strip())
    name = ", ".join(Path(files[part]).stem for part in PARTS if part in files)
    return _checked(lists, cases, name, fingerprint, missing)


def _checked(
    lists: Mapping[Part, Iterable[str]],
    cases: Sequence[SplitCase],
    name: str,
    fingerprint: str,
    missing: Literal["error", "skip"],
) -> Split:
    """Resolve names to cases, and refuse what would make a score worthless."""
    known = {case.name: case for case in cases}
    place: dict[str, Part] = {}
    absent: list[str] = []
    found: dict[Part, tuple[str, ...]] = {}
    for part in PARTS:
        # A case to test on may lack its label: it is segmented and not scored.
        usable = {n: c for n, c in known.items() if c.is_labelled or part == "test"}
        named = {written: _resolve(written, usable) for written in lists[part]}
        absent += [written for written, case in named.items() if case is None]
        here = sorted({case for case in named.values() if case is not None})
        for case in here:
            patient = known[case].patient
            other = place.setdefault(patient, part)
            if other != part:
                raise DataError(
                    f"split {name}: patient {patient} (case {case}) is in {other} and in {part}; "
                    "a patient may be in one part only"
                )
        found[part] = tuple(here)
    if absent and missing == "error":
        raise DataError(
            f"split {name}: {len(absent)} of its cases are not in the data set, or have no label "
            f"to train on, as {', '.join(absent[:3])}; add them, or set data.missing_cases=skip"
        )
    if not found["train"] and not found["test"]:
        raise DataError(f"split {name} has no case of the data set to train or to test on")
    return Split(**found, name=name, fingerprint=fingerprint, missing=tuple(absent))


def _resolve(written: str, known: Mapping[str, SplitCase]) -> str | None:
    bare = _GRADE.sub("", written)
    return next((name for name in (written, bare) if name in known), None)


def _shuffled(cases: Sequence[SplitCase], seed: int) -> list[str]:
    """Order patients by a hash: no random generator whose next version could draw otherwise."""
    patients = {case.patient for case in cases}
    return sorted(patients, key=lambda p: (hashlib.sha256(f"{seed}:{p}".encode()).digest(), p))


def _names(cases: Sequence[SplitCase], patients: Iterable[str]) -> tuple[str, ...]:
    chosen = set(patients)
    return tuple(sorted(case.name for case in cases if case.patient in chosen))
