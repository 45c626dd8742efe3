"""Configurations that cannot work: one line, exit 2, before anything is trained."""

import os
import re
from pathlib import Path

import pytest

from bts_lightning.__main__ import main
from bts_lightning.errors import ConfigError
from tests.tiny_training import NOT_VALIDATED, TINY

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")
CALLBACKS = "callbacks.one._target_=lightning.pytorch.callbacks"
STOPPED = "callbacks.one.monitor=val/x callbacks.one.check_on_train_epoch_end=true"
# Each with what its line says.
WRONG = {
    "seed=4294967296": "seed is 4294967296; the largest is 4294967295",
    'data.cache="a\\0b"': r"data.cache=a\x00b: no name holds a NUL",
    "data.cache=file/cache": "is no folder",
    "data.patch=-1": "patch is -1; give one edge length",
    "data.patch=100000": "GiB, and this machine has",
    "data.prefetch=1000000000": "data.prefetch=1000000000 batches",
    "data.batch_size=1000000000": "of data.batch_size=1000000000 patches",
    "data.workers=100000": "data.workers is 100000; this machine takes up to",
    "net.width=0": "width is 0; A2FSeg needs 1 or more",
    "net.width=1000000 net.width_limit=1000000": "the weights do not fit into the",
    "evaluation.window=0": "window=0 of the evaluation",
    "trainer.devices=100000": "trainer.devices is 100000, and there are",
    "trainer.num_nodes=2": "neither Slurm nor torchrun has started this process",
    "trainer.gradient_clip_val=-1": "trainer.gradient_clip_val is -1; the smallest is 0",
    f"{CALLBACKS}.LearningRateFinder": "LearningRateFinder does not work here",
    f"{CALLBACKS}.BatchSizeFinder": "BatchSizeFinder does not work here",
    f"{CALLBACKS}.EarlyStopping {STOPPED}": "metric `val/x` which is not avail",
}


@pytest.mark.parametrize("words", WRONG)
def test_it_is_refused(
    phantom: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: str,
) -> None:
    for name in ("SLURM_NTASKS", "LOCAL_RANK", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    Path("file").touch()
    assert main(["train", *TINY, *NOT_VALIDATED, f"data.root={phantom}", *words.split(" ")]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error"))
    assert WRONG[words] in line


def test_a_scheduler_may_start_as_many_as_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    from bts_lightning.runs.limits import check_devices

    monkeypatch.setenv("SLURM_NTASKS", "100000")
    monkeypatch.setenv("SLURM_JOB_NAME", "training")
    check_devices({"devices": 100000, "num_nodes": 7})
    # In a shell that Slurm has given, Lightning would start them all by itself.
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    with pytest.raises(ConfigError, match="devices is 100000, and there are"):
        check_devices({"devices": 100000})


def test_a_run_of_a_larger_machine_is_evaluated_on_what_is_here() -> None:
    from bts_lightning.runs.devices import cores
    from bts_lightning.runs.limits import devices_here

    large = {"devices": 100000, "num_nodes": 7, "accelerator": "cpu"}
    assert devices_here(large) == {"num_nodes": 1, "devices": cores()}
    assert devices_here({"devices": 1, "num_nodes": 1, "accelerator": "cpu"}) == {}


FILES = {
    "5": "expected a mapping|not readable as YAML",
    "extends: 5": "extends is 5; give a name",
    "extends: [1]": r"extends is \[1\]; give a name",
    "seed: " + "9" * 5000: "not readable as YAML",
    "seed: " + "[" * 5000: "not readable as YAML",
}


@pytest.mark.parametrize("text", FILES, ids=lambda text: text[:20])
def test_a_file_that_is_no_experiment_is_named(
    capsys: pytest.CaptureFixture[str], text: str
) -> None:
    Path("mine.yaml").write_text(text)
    assert main(["train", "mine.yaml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(f"error: .*mine.yaml.*({FILES[text]})", line)


def test_a_pipe_is_no_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("mine.yaml")
    assert main(["train", "mine.yaml"]) == 2
    assert "no experiment is named 'mine.yaml'" in capsys.readouterr().err
