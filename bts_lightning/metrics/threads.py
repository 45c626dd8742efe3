"""Share work that releases the interpreter lock over threads."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_threads(
    function: Callable[[Job], Result], jobs: Iterable[Job], threads: int
) -> list[Result]:
    """Give the results in the order of the jobs, whichever thread did them."""
    if threads == 1:
        return [function(job) for job in jobs]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, jobs))


def shares(length: int, parts: int) -> list[range]:
    """Cut `length` items into at most `parts` runs of nearly one size, none empty."""
    edges = [length * i // parts for i in range(parts + 1)]
    return [range(a, b) for a, b in pairwise(edges) if b > a]
