"""Which cases a network has seen, told without their names.

A package holds a digest of each name with a salt of its own: whoever has a case can ask for it,
and whoever has none learns how many there were. Names that are numbered, as those of public data
sets, can be guessed; each guess costs milliseconds.
"""

import hashlib
import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bts_lightning.data.splits import PARTS, Part, Split
from bts_lightning.errors import DataError
from bts_lightning.report.table import named_patient
from bts_lightning.runs.container import SEEN, checked

ROUNDS = 10_000
# What makes a score too good, by the part that is scored.
BEFORE: dict[Part, tuple[Part, ...]] = {"train": (), "val": ("train",), "test": ("train", "val")}
_HOW = (
    f"PBKDF2-HMAC-SHA256, {ROUNDS} rounds with this salt, 16 bytes in hex, of the name of each "
    "case and of its patient; `bts unpack FILE --seen NAME` looks a name up"
)


@dataclass(frozen=True)
class Seen:
    """The digests of the names in each part of a split, and how many cases these are."""

    salt: str
    cases: dict[Part, int]
    digests: dict[Part, frozenset[str]]

    @classmethod
    def of(cls, split: Split) -> "Seen":
        """Take the names of a split out."""
        salt = secrets.token_hex(16)
        lists = {part: getattr(split, part) for part in PARTS}
        return cls(
            salt,
            {part: len(names) for part, names in lists.items()},
            {
                part: frozenset(_digest(salt, one) for name in names for one in _names(name))
                for part, names in lists.items()
            },
        )

    @classmethod
    def load(cls, run: Path) -> "Seen | None":
        """Read that of an unpacked run; other runs have none."""
        file = run / SEEN
        if not file.exists():
            return None
        try:
            told = json.loads(checked(file))
            return cls(
                str(told["salt"]),
                {part: int(told["cases"][part]) for part in PARTS},
                {part: frozenset(map(str, told[part])) for part in PARTS},
            )
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise DataError(f"{file} does not tell which cases were seen ({error})") from error

    def to_json(self) -> str:
        """Write what `load` reads."""
        parts = {part: sorted(found) for part, found in self.digests.items()}
        told: dict[str, object] = {"how": _HOW, "salt": self.salt, "cases": self.cases}
        return json.dumps(told | parts, indent=1) + "\n"

    def part_of(self, name: str, patient: str | None = None) -> Part | None:
        """Say in which part a case was, or another scan of its patient."""
        asked = {_digest(self.salt, one) for one in _names(name, patient)}
        return next((part for part in PARTS if asked & self.digests[part]), None)


def warnings(run: Path, cases: Iterable[tuple[str, str]], part: Part = "test") -> list[str]:
    """Say which cases (name and patient) of a part an unpacked run was trained or chosen on."""
    seen = Seen.load(run)
    if seen is None:
        return []
    parts = [(name, seen.part_of(name, patient)) for name, patient in cases]
    found = {one: [name for name, its in parts if its == one] for one in BEFORE[part]}
    return [
        f"{len(names)} of these {len(parts)} cases, {names[0]} first, or other scans of their "
        f"patients, were in the {one} part when the network was trained: scores on them say "
        "nothing about new patients"
        for one, names in found.items()
        if names
    ]


def _names(name: str, patient: str | None = None) -> set[str]:
    return {name, named_patient(name), patient or name}


def _digest(salt: str, name: str) -> str:
    secret = name.encode(errors="surrogateescape")
    return hashlib.pbkdf2_hmac("sha256", secret, salt.encode(), ROUNDS, 16).hex()
