"""Time two trainings after each other and side by side: `python -m tests.runs.side_by_side`.

Once with OpenMP's threads spinning while they wait, as its library does by itself, and once as
`bts` sets them. Words behind it go to the trainings.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from bts_lightning.data.cache.prepare import prepare
from bts_lightning.data.phantom.write import write_phantom

WORDS = ["demo", "trainer.accelerator=cpu", "trainer.max_epochs=1", "data.steps_per_epoch=30"]
WORDS += ["trainer.limit_val_batches=0", "callbacks.best=null", "logger.wandb=null"]
# What libgomp takes where nothing is set.
WAITS = {"spinning": {"GOMP_SPINCOUNT": "300000"}, "as `bts` sets it": {}}
SET = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "BTS_RUN")


def seconds(place: Path, words: list[str], waits: dict[str, str], together: int) -> float:
    """Train twice, so many at a time, and give the time in all."""
    command = [sys.executable, "-P", "-m", "bts_lightning", "train", *words]
    free = {name: value for name, value in os.environ.items() if name not in SET}
    began = time.perf_counter()
    for turn in range(2 // together):
        trainings = [
            subprocess.Popen(
                command,
                env=free | waits | {"BTS_RUN": str(place / f"{time.time_ns()}-{turn}-{i}")},
                stdout=subprocess.DEVNULL,
                cwd=place,
            )
            for i in range(together)
        ]
        codes = [training.wait() for training in trainings]
        assert not any(codes)
    return time.perf_counter() - began


def main(words: list[str]) -> None:
    """Print the table."""
    print("| threads that wait | one after the other | side by side | ratio |\n|---|--:|--:|--:|")
    with TemporaryDirectory() as folder:
        place = Path(folder)
        write_phantom(place / "data", cases=8, seed=0, size=(72, 72, 64), workers=1)
        prepare(place / "data", workers=1)
        words = [*WORDS, f"data.root={place / 'data'}", *words]
        for name, waits in WAITS.items():
            alone, both = (seconds(place, words, waits, together) for together in (1, 2))
            print(f"| {name} | {alone:.0f} s | {both:.0f} s | {both / alone:.2f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
