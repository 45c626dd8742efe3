"""Where the parameters of an official network stand in ours, read from the tables beside this file.

A table maps our names to official ones. In a name of ours, `{k}` is a number, `{k!}` the highest
one that there is, and a word of the table's `spell` one of its entries. In the official name
`{k+1}` counts from 1, `{-k}` from the other end, `{last:NAME}` is the highest number behind NAME,
and `{o}` the place of a modality in the official order. `NAME[1:2/5]` is part 2 (from 0) of 5 along
axis 1.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from bts_lightning.errors import ConfigError, did_you_mean
from bts_lightning.modalities import MODALITIES, Modality

if TYPE_CHECKING:
    from torch import Tensor

_FOLDER = Path(__file__).parent
_OURS = re.compile(r"\\\{(\w+)(!?)\\\}")
_HIGHEST = re.compile(r"\{(\w+)!\}")
_THEIRS = re.compile(r"\{(-?)(?:last:([\w.]+)|(\w+))(?:\+(\d))?\}")
_PART = re.compile(r"(.+)\[(\d):(\d)/(\d)\]")
# The predictions of a network in our order, by their number.
_GIVES = {3: ("WT", "TC", "ET"), 4: ("BG", "NCR/NET", "ED", "ET")}


@dataclass(frozen=True)
class Place:
    """Where a parameter of ours lies in the official state.

    Attributes:
        name: of the official parameter.
        part: axis, number and count, where ours is one of several equal parts.
        blocks: an axis, and which official block each of ours is; what is left over stays last.
        axes: which official axis each of our spatial axes is.
    """

    name: str
    part: tuple[int, int, int] | None = None
    blocks: tuple[tuple[int, tuple[int, ...]], ...] = ()
    axes: tuple[int, ...] = (0, 1, 2)

    def shape(self, ours: Sequence[int]) -> tuple[int, ...]:
        """Give the official shape, but for sizes of 1 at its end."""
        size = list(ours)
        if len(size) == 5:
            size[2:] = [size[2 + self.axes.index(axis)] for axis in range(3)]
        if self.part:
            size[self.part[0]] *= self.part[2]
        return tuple(size)

    def take(self, official: "Tensor") -> "Tensor":
        """Cut, reorder and turn an official parameter into ours."""
        x = official
        if self.part:
            axis, number, count = self.part
            x = x.chunk(count, dim=axis)[number]
        for axis, order in self.blocks:
            length = x.shape[axis] // len(order)
            index = [block * length + i for block in order for i in range(length)]
            index += range(len(index), x.shape[axis])
            x = x.index_select(axis, x.new_tensor(index, device=x.device).long())
        return x.permute(0, 1, *(2 + axis for axis in self.axes)) if x.dim() == 5 else x


@dataclass(frozen=True)
class Table:
    """All that is known of the checkpoints of one official network.

    Attributes:
        name: of the table.
        network: what it is, in words.
        source: repository and commit.
        train: the experiment and the overrides that make it ours, with the official protocol.
        names: patterns of our names and what they are officially.
        spell: words of these patterns, ours and theirs.
        reads: modalities in the official order.
        gives: predictions in the official order, if it is not ours.
        axes: of an image in the official order.
        blocks: an axis, for patterns of our parameters that have a block a modality along it; with
            the number of blocks where others follow those of the modalities.
        heads: the same for those with a block a prediction.
        unused: patterns of official parameters without effect on the segmentation, which ours may
            lack.
        parts: keys of the file, each with a state; one state under any known key without them.
        whole_task: the names are those of the task, not of its network.
        weights: where the authors link some.
        remarks: what still differs from the official protocol.
    """

    name: str
    network: str
    source: str
    train: list[str]
    names: dict[str, str]
    reads: list[Modality]
    spell: dict[str, dict[str, str]] = field(default_factory=dict)
    gives: list[str] = field(default_factory=list)
    axes: str = "xyz"
    blocks: dict[str, Any] = field(default_factory=dict)
    heads: dict[str, int] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    whole_task: bool = False
    weights: str = ""
    remarks: list[str] = field(default_factory=list)

    @property
    def turned(self) -> tuple[int, ...]:
        """Say which official axis each of ours is."""
        return tuple(self.axes.index(axis) for axis in "xyz")

    @property
    def modality_order(self) -> tuple[int, ...]:
        """Say which official channel each of ours is."""
        return tuple(self.reads.index(name) for name in MODALITIES)

    @property
    def output_order(self) -> tuple[int, ...]:
        """Say which official prediction each of ours is, if they are in another order."""
        return (
            tuple(self.gives.index(name) for name in _GIVES[len(self.gives)]) if self.gives else ()
        )

    def places(self, ours: Iterable[str]) -> dict[str, Place]:
        """Find each of our parameters in the official state."""
        names = list(ours)
        found: dict[str, Place] = {}
        for pattern, template in self.names.items():
            rule = self._rule(pattern)
            hits = {n: hit for n in names if n not in found and (hit := rule.fullmatch(n))}
            numbers = [k for k in rule.groupindex if k not in self._words and k != "tail"]
            last = {k: max((int(hit[k]) for hit in hits.values()), default=0) for k in numbers}
            for name, hit in hits.items():
                if all(int(hit[k]) == last[k] for k in _HIGHEST.findall(pattern)):
                    found[name] = self._place(name, self._spelled(template, hit, last, names))
        return found

    @property
    def _words(self) -> dict[str, dict[str, str]]:
        order = {str(i): str(place) for i, place in enumerate(self.modality_order)}
        return {"o": order} | self.spell

    def _rule(self, pattern: str) -> re.Pattern[str]:
        def group(hit: re.Match[str]) -> str:
            words = self._words.get(hit[1])
            choice = "|".join(re.escape(word) for word in words) if words else r"\d+"
            return f"(?P<{hit[1]}>{choice})"

        return re.compile(
            _OURS.sub(group, re.escape(pattern))
            + r"(?P<tail>(?:\.(?:weight|bias|running_mean|running_var))?)"
        )

    def _spelled(
        self, template: str, hit: re.Match[str], last: Mapping[str, int], ours: Iterable[str]
    ) -> str:
        def value(found: re.Match[str]) -> str:
            minus, behind, word, plus = found.groups()
            if behind:
                starts = (re.match(re.escape(behind) + r"\.(\d+)", name) for name in ours)
                return str(max(int(start[1]) for start in starts if start))
            text = self._words[word][hit[word]] if word in self._words else hit[word]
            if minus:
                text = str(last[word] - int(text))
            return str(int(text) + int(plus)) if plus else text

        name, _, part = template.partition("[")
        text = name + hit["tail"] + (f"[{part}" if part else "")
        while _THEIRS.search(text):  # a word may be spelled with a number
            text = _THEIRS.sub(value, text)
        return text

    def _place(self, ours: str, theirs: str) -> Place:
        part = _PART.fullmatch(theirs)
        cut = (int(part[2]), int(part[3]), int(part[4])) if part else None
        blocks = []
        for glob, axis in self.blocks.items():
            if axis is not None and fnmatchcase(ours, glob):
                along, count = (axis, len(MODALITIES)) if isinstance(axis, int) else axis
                others = range(len(MODALITIES), count)
                blocks.append((along, (*self.modality_order, *others)))
        blocks += [
            (a, self.output_order) for glob, a in self.heads.items() if fnmatchcase(ours, glob)
        ]
        return Place(part[1] if part else theirs, cut, tuple(blocks), self.turned)


def tables() -> list[str]:
    """Name all tables of networks; others hold what several share."""
    return [
        name
        for name in sorted(file.stem for file in _FOLDER.glob("*.yaml"))
        if "train" in _raw(name)
    ]


@cache
def read_table(name: str) -> Table:
    """Read a table by its name."""
    if name not in tables():
        raise ConfigError(f"there is no official network {name!r}; {did_you_mean(name, tables())}")
    raw = _raw(name)
    spell = {word: dict(_entries(spelled)) for word, spelled in raw["spell"].items()}
    return Table(name=name, **(raw | {"spell": spell}))


@cache
def _raw(name: str) -> dict[str, Any]:
    """Read a file over the one that it extends."""
    own: Any = OmegaConf.to_container(OmegaConf.load(_FOLDER / f"{name}.yaml"))
    above = _raw(own.pop("extends")) if "extends" in own else {}
    # The first pattern that fits wins, so that own names come first.
    for key in ("names", "spell", "blocks", "heads"):
        first = own.get(key, {})
        own[key] = first | {k: v for k, v in above.get(key, {}).items() if k not in first}
    return above | own


def _entries(spelled: Any) -> Iterator[tuple[str, str]]:
    pairs = enumerate(spelled) if isinstance(spelled, list) else spelled.items()
    for ours, theirs in pairs:
        yield str(ours), str(theirs)
