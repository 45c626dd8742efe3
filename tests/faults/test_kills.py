"""Verbs that are killed before a change of a file end, run again, as if they never had been."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.faults.kills import Verb, Zygote, attack, undisturbed
from tests.tiny_training import TINY, TRAINING

RUN = "runs/tiny/1"
# No account is asked for, and no bars are drawn.
QUIET = ["logger.wandb=null", "data.steps_per_epoch=2", "callbacks.overlays=null"]
# One window a case, one subset.
FAST = ["evaluation.subsets=[t1c]", "evaluation.window=48", "trainer.limit_val_batches=1"]


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    started = Zygote()
    yield started
    started.end()


def training(phantom: Path) -> Verb:
    """Give a training of two epochs, each of them validated."""
    words = [*TINY, *QUIET, "trainer.check_val_every_n_epoch=1", f"data.root={phantom}"]
    return Verb(["train", *words], environment=(("BTS_RUN", RUN),))


@pytest.fixture(scope="module")
def verbs(
    phantom: Path, zygote: Zygote, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Verb]:
    trained = tmp_path_factory.mktemp("trained") / "whole"

    def copy_run(folder: Path) -> None:
        if not trained.exists():
            undisturbed(zygote, training(phantom), trained)
        shutil.copytree(trained / RUN, folder / RUN)

    def write_experiment(folder: Path) -> None:
        (folder / "experiments").mkdir()
        (folder / "experiments" / "tiny.yaml").write_text(TRAINING)
        tree = {
            "method": "grid",
            "metric": {"name": "val/dice/mean", "goal": "maximize"},
            "parameters": {"task.optimizer.lr": {"values": [1e-3, 1e-2]}},
        }
        (folder / "mine.yaml").write_text(yaml.safe_dump(tree))

    root = f"data.root={phantom}"
    sweep = ["--sweep", "mine.yaml", "--local", "--agents", "1"]
    # The experiment augments nothing.
    small = [word for word in TINY[1:] if "augment" not in word]
    chain = [*small, *QUIET, *FAST, "trainer.max_epochs=1", "--subsets", "t1c", "--device", "cpu"]
    return {
        "prepare": Verb(["prepare", str(phantom), "--cache", "cache", "--workers", "1"]),
        "train": training(phantom),
        "evaluate": Verb(["evaluate", RUN], copy_run),
        "sweep": Verb(["sweep", "tiny", root, *FAST, *sweep], write_experiment),
        "study": Verb(["study", "tiny", root, "--seeds", "2", *QUIET, *FAST], write_experiment),
        "distill": Verb(["distill", "kd_unet", root, *chain]),
    }


def every(step: int) -> Callable[[bytes], Iterable[int]]:
    return lambda changes: range(1 + step // 2, len(changes) + 1, step)


def some(own: int, others: int) -> Callable[[bytes], Iterable[int]]:
    """Take every so-manieth change that a verb makes itself, and that trainings it starts make."""

    def points(changes: bytes) -> Iterable[int]:
        mine = [at for at, who in enumerate(changes, 1) if who == ord("o")]
        return sorted({*mine[own // 2 :: own], *every(others)(changes)})

    return points


@pytest.mark.parametrize(("verb", "step"), [("prepare", 50), ("train", 20)])
def test_killed_before_some_changes(
    verb: str, step: int, verbs: dict[str, Verb], zygote: Zygote, tmp_path: Path
) -> None:
    assert not attack(zygote, verbs[verb], tmp_path, every(step))


# What starts trainings takes hours if it is killed before each change, most of which are those of
# `train`: ask for that by `BTS_EVERY_CHANGE=1`.
STEPS = {} if os.environ.get("BTS_EVERY_CHANGE") else {"study": (1, 11), "distill": (3, 43)}


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["prepare", "train", "evaluate", "sweep", "study", "distill"])
def test_killed_before_every_change(
    verb: str, verbs: dict[str, Verb], zygote: Zygote, tmp_path: Path
) -> None:
    assert not attack(zygote, verbs[verb], tmp_path, some(*STEPS.get(verb, (1, 1))))
