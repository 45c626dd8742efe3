"""Ways to damage a file or a value, drawn by chance."""

import random
from pathlib import Path
from typing import Any

WORDS = ([], {}, "word", 5, -1, None, True, 1e300)


def cut(file: Path, chance: random.Random) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: chance.randrange(len(content))])


def flip(file: Path, chance: random.Random) -> None:
    content = bytearray(file.read_bytes())
    # Half of them where a header is.
    last = len(content) if chance.random() < 0.5 else min(len(content), 128)
    content[chance.randrange(last)] ^= 1 << chance.randrange(8)
    file.write_bytes(content)


def place(content: Any, chance: random.Random) -> tuple[Any, Any]:
    """Choose one place of all in a JSON."""
    places = []
    inside = [content]
    while inside:
        holder = inside.pop()
        keys = range(len(holder)) if isinstance(holder, list) else list(holder)
        places += [(holder, key) for key in keys]
        inside += [holder[key] for key in keys if isinstance(holder[key], list | dict)]
    return chance.choice(places)
