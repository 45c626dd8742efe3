"""Random damage of a trained and evaluated run: the same result, mended, told, or one line."""

import csv
import json
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
import yaml

from bts_lightning.__main__ import main
from bts_lightning.loggers import read_metrics
from tests.faults.damage import WORDS, cut, flip, place
from tests.tiny_training import NOT_VALIDATED, TINY, final, the_run, train

CASES = 600
LONGEST = 60
EVALUATE = ("evaluate", "--device", "cpu")
AGAIN = (*EVALUATE, "--name", "again")
TRAIN = ("train", "trainer.max_epochs=2")
# What is damaged, and what is then done with the run.
DAMAGED = {
    "protocol.json": (EVALUATE, ("report",)),
    "config.yaml": (EVALUATE, TRAIN),
    "metrics.csv": (TRAIN,),
    "rows/*.csv": (EVALUATE,),
    "cases.csv": (EVALUATE, ("report",)),
    "*.ckpt": (AGAIN, TRAIN),
}
# By these words a user learns that a result may differ.
TOLD = ("was changed since", "cannot be read; left out")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("in_an_empty_folder"),
    # Lightning's, where a callback is gone from a configuration; a user reads it.
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
]


@pytest.fixture
def good(phantom: Path) -> Path:
    """Train for an epoch, and evaluate."""
    words = [*TINY, *NOT_VALIDATED, f"data.root={phantom}", "trainer.max_epochs=1"]
    assert train(*words, "logger.wandb=null") == 0
    assert main([*EVALUATE, str(the_run())]) == 0
    return Path(shutil.move(the_run(), "good"))


def test_any_damage_of_a_run_is_mended_or_told(
    good: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run = Path("run")
    expected = {}
    for words in {words for both in DAMAGED.values() for words in both}:
        shutil.copytree(good, run)
        assert do(words, run) == 0
        expected[words] = result(words, run)
        shutil.rmtree(run)
    outcomes: Counter[str] = Counter()
    slowest, wrong = 0.0, []
    for seed in range(CASES):
        chance = random.Random(seed)
        shutil.copytree(good, run)
        pattern, actions = list(DAMAGED.items())[seed % len(DAMAGED)]
        words = chance.choice(actions)
        file = chance.choice(sorted(run.rglob(pattern)))
        kind = chance.choice([cut, flip, _retype, _remove])
        kind(file, chance)
        damaged = file.read_bytes()
        begin = time.perf_counter()
        capfd.readouterr()
        caplog.clear()
        caught = ""
        try:
            code = do(words, run)
        except Exception as error:
            code, caught = 1, repr(error)
        said = "".join((caplog.text, *capfd.readouterr()))
        slowest = max(slowest, time.perf_counter() - begin)
        if code == 2 and said.splitlines()[-1].startswith("error: "):
            outcome = "refused"
        elif code == 0 and result(words, run) == expected[words]:
            outcome = "mended" if file.read_bytes() != damaged else "same"
        elif code == 0 and any(text in said for text in TOLD):
            outcome = "told"
        else:
            outcome = "wrong"
            wrong.append(
                (seed, file.name, kind.__name__, words, caught if code == 1 else code, said)
            )
        outcomes[outcome] += 1
        shutil.rmtree(run)
    assert not wrong, wrong
    assert sum(outcomes.values()) == CASES
    assert outcomes.keys() == {"same", "mended", "told", "refused"}
    with capfd.disabled():
        print(f"\n{CASES} damaged files of runs: {dict(outcomes)}, slowest {slowest:.1f} s")


def do(words: tuple[str, ...], run: Path) -> int:
    """Run a verb on a run, with an end."""

    def hang(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"{words} took more than {LONGEST} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(LONGEST)
    try:
        return main([words[0], str(run), *words[1:]])
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def result(words: tuple[str, ...], run: Path) -> Any:
    """Give all that a verb makes, but for times."""
    if words == TRAIN:
        curves = read_metrics(run / "logs" / "metrics.csv")
        weights = {name: value.numpy().tobytes() for name, value in final(run).items()}
        return weights, {name: curves[name] for name in curves if not name.startswith("speed/")}
    folder = run / "evaluation" / ("again" if words == AGAIN else "test")
    facts = json.loads((folder / "protocol.json").read_text())
    # These name the place, the moment and the bytes of the checkpoint.
    for key in ("created", "run", "experiment", "checkpoint_sha256", "checksum"):
        facts.pop(key, None)
    return facts, (folder / "cases.csv").read_bytes()


def _retype(file: Path, chance: random.Random) -> None:
    def change(holder: Any, key: Any) -> None:
        holder[key] = chance.choice(WORDS)

    _change(file, chance, change)


def _remove(file: Path, chance: random.Random) -> None:
    def change(holder: Any, key: Any) -> None:
        del holder[key]

    _change(file, chance, change)


def _change(file: Path, chance: random.Random, change: Callable[[Any, Any], None]) -> None:
    """Change one place of what a file holds."""
    if file.suffix == ".ckpt":
        content = torch.load(file, weights_only=True)
        change(*place(content, chance))
        torch.save(content, file)
    elif file.suffix == ".json":
        content = json.loads(file.read_text())
        change(*place(content, chance))
        file.write_text(json.dumps(content))
    elif file.suffix == ".yaml":
        first, _, rest = file.read_text().partition("\n")
        content = yaml.safe_load(rest)
        change(*place(content, chance))
        file.write_text(f"{first}\n{yaml.safe_dump(content, sort_keys=False)}")
    else:
        rows = list(csv.reader(file.read_text().splitlines()))
        change(*place(rows, chance))
        rows = [row if isinstance(row, list) else [row] for row in rows]
        file.write_text("".join(f"{','.join(map(str, row))}\n" for row in rows))
