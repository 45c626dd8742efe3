"""Whole cases, for validation and testing."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bts_lightning.data.cache.prepare import CachedCase


class CaseBatch(dict[str, CachedCase | None]):
    """One case as a batch; it stays where it is when Lightning moves batches to the device."""

    def to(self, *args: Any, **kwargs: Any) -> "CaseBatch":
        """Stay: a case is read where it is needed, and Lightning cannot copy a frozen one."""
        return self


class CaseLoader:
    """Give each case to one rank, `rank::world`.

    Ranks that come out short end with `{"case": None}`, so that all take the same number of steps
    and no case has to be shown twice.
    """

    def __init__(
        self, cases: Sequence[CachedCase], place: Callable[[], tuple[int, int]] = lambda: (0, 1)
    ) -> None:
        self.cases = cases
        # Asked late: a loader may be made before the ranks have found each other.
        self._place = place

    def __len__(self) -> int:
        _, world = self._place()
        return -(-len(self.cases) // world)

    def __iter__(self) -> Iterator[CaseBatch]:
        rank, world = self._place()
        for step in range(len(self)):
            number = step * world + rank
            yield CaseBatch(case=self.cases[number] if number < len(self.cases) else None)
