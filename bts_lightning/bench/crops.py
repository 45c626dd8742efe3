"""Single crops: ours, theirs, and what the memory allows."""

import mmap
from collections.abc import Callable
from typing import Any

import numpy as np

from bts_lightning.bench.result import Cell, Claim, Table
from bts_lightning.bench.timing import failures, take_turns
from bts_lightning.data.samples import PatchDataset

ENDLESS = 1_000_000


def own_crops(cases: list[Any], patch: int) -> dict[str, Callable[[], object]]:
    """Give the limit, first, and our ways to crop."""
    limits = {
        "memcpy of as many bytes of the mapped files, the limit": _memcpy(cases, patch),
        "memcpy into memory that the system must give first": _memcpy(cases, patch, fresh=True),
    }
    return limits | {
        f"ours, {word} flips": _one_crop(cases, patch, flip)
        for word, flip in (("without", 0.0), ("with random", 0.5))
    }


def time_crops(work: dict[str, Callable[[], object]], patch: int, rounds: int, again: str) -> Table:
    """Time them in turns."""
    # Until every case has been mapped.
    timings = take_turns(work, 3 * rounds, warm=8)
    limit = next(iter(timings.values())).median if timings else np.nan
    rows: list[list[Cell]] = [
        [name, 1000 * timing.median, timing.spread, timing.median / limit]
        for name, timing in timings.items()
    ]
    return Table(
        "One crop, one thread",
        ["loader", "ms", "±", "× the limit"],
        rows,
        [
            f"A patch has {patch**2 * 5:,} rows of {patch} voxels, each of which begins anew;"
            " memcpy moves its bytes in one go. Fresh memory is what every loader pays that"
            " allocates its batches; ours are filled again and again.",
            *failures(timings),
        ],
        again,
    )


def claim_of_crops(table: Table) -> list[Claim]:
    """Hold ours against the limit."""
    found = [float(row[3]) for row in table.rows if str(row[0]).startswith("ours, without")]  # type: ignore[arg-type]
    # Turned round, so that more is better as everywhere: the design asks for within 2 × memcpy.
    return [Claim("one crop as a share of memcpy's speed", 0.5, 1 / found[0])] if found else []


def _memcpy(cases: list[Any], patch: int, *, fresh: bool = False) -> Callable[[], object]:
    size = 9 * patch**3  # bytes: four float16, one uint8
    sources = [case.image.reshape(-1).view(np.uint8)[:size] for case in cases]
    target = np.empty(size, np.uint8)
    turn = iter(range(ENDLESS))

    def copy() -> None:
        # Mapped anew: what malloc gives may have been used before.
        new = np.frombuffer(mmap.mmap(-1, size), np.uint8) if fresh else target
        source = sources[next(turn) % len(sources)]
        np.copyto(new[: source.size], source)

    return copy


def _one_crop(cases: list[Any], patch: int, flip: float) -> Callable[[], object]:
    patches = PatchDataset(cases, samples=ENDLESS, patch=patch, flip=flip)
    image, label = np.empty((4, *[patch] * 3), np.float16), np.empty([patch] * 3, np.uint8)
    turn = iter(range(ENDLESS))
    return lambda: patches.draw(0, next(turn)).fill(image, label)
