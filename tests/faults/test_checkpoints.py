"""Checkpoints that a training cannot take over: one line, exit 2."""

import shutil
from pathlib import Path

import pytest
import torch

from bts_lightning.__main__ import main

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


STRANGE = {
    "weights alone": lambda c: [c.pop(key) for key in list(c) if key != "state_dict"],
    "another optimizer": lambda c: c["optimizer_states"][0]["param_groups"][0].pop("eps"),
    "two optimizers": lambda c: c.update(optimizer_states=c["optimizer_states"] * 2),
    "no groups": lambda c: c.update(optimizer_states=[{"state": {}, "param_groups": []}]),
    "an optimizer of no kind": lambda c: c.update(optimizer_states=[5]),
    "a schedule of no kind": lambda c: c.update(lr_schedulers=[5]),
    "no schedule": lambda c: c.update(lr_schedulers=[]),
    "no loop": lambda c: c.update(loops={}),
    "a loop of no kind": lambda c: c.update(loops={"fit_loop": 5}),
    "no version": lambda c: c.update({"pytorch-lightning_version": "x.y"}),
    "sums of no kind": lambda c: c.update(sums_of_the_epoch=5),
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_training_does_not_go_on_from_it(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "runs" / "uhemis" / "1"))
    (file,) = (run / "checkpoints").glob("*.ckpt")
    content = torch.load(file, weights_only=True)
    del content["checksum"]
    STRANGE[name](content)
    torch.save(content, file)
    assert main(["train", str(run), "trainer.max_epochs=2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "checkpoint" in line


def test_a_checkpoint_that_was_changed_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "runs" / "uhemis" / "1"))
    (file,) = (run / "checkpoints").glob("*.ckpt")
    content = torch.load(file, weights_only=True)
    torch.save(content | {"global_step": 7}, file)
    for verb in ("train", "evaluate"):
        assert main([verb, str(run)]) == 2
        assert "was changed after it was saved" in capsys.readouterr().err
