"""Chance that depends on where we are, never on what ran before: resume and ranks rely on it."""

from zlib import crc32

import numpy as np


def generator(seed: int, *place: int | str) -> np.random.Generator:
    """Give the random numbers that belong to a place, for example (seed, epoch, index, "crop").

    Two places share no numbers, so switching one source of chance off leaves the others as they
    were.
    """
    # `hash` is salted per process; a checksum is the same on every rank and every day.
    words = (crc32(part.encode()) if isinstance(part, str) else part for part in place)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, *words))))


def probability(name: str, value: float) -> float:
    """Refuse what is no probability."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; a probability is between 0 and 1")
    return value
