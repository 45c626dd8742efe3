"""Files of a run that are damaged, or of the wrong kind."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bts_lightning.__main__ import main
from bts_lightning.loggers import Csv, read_metrics
from bts_lightning.runs import refuse_strangers, save_config, was_edited
from bts_lightning.runs.processes import is_from_elsewhere, is_worked_on, leave_sign

KINDS: dict[str, Callable[[Path], None]] = {
    "fifo": os.mkfifo,
    "folder": Path.mkdir,
    "file": Path.touch,
    "gone": lambda place: place.symlink_to("nowhere"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["checkpoints", "logs", "worker.json", "split.json", ".lock"])
def test_what_stands_in_the_place_of_something_else_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("seed: 0")
    refuse_strangers(run)
    KINDS[kind](run / name)
    if kind == ("file" if "." in name else "folder"):
        refuse_strangers(run)
        return
    assert main(["evaluate", str(run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {run / name} is ")


@pytest.mark.parametrize("kind", ["fifo", "file"])
def test_a_training_is_not_begun_in_a_run_that_is_spoilt(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    shutil.rmtree(run / "logs")
    KINDS[kind](run / "logs")
    assert main(["train", str(run)]) == 2
    assert f"{run / 'logs'} is no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    ["", "5", "[]", "{}", "{", "\0", '{"host": "a"}', '{"host": 5, "worker": 5, "training": [5]}'],
)
def test_a_damaged_sign_of_life_is_that_of_nobody(tmp_path: Path, text: str) -> None:
    (tmp_path / "worker.json").write_text(text)
    assert not is_worked_on(tmp_path)
    assert not is_from_elsewhere(tmp_path)
    leave_sign(tmp_path)
    assert is_worked_on(tmp_path)
    sign = json.loads((tmp_path / "worker.json").read_text())
    (tmp_path / "worker.json").write_text(json.dumps(sign | {"worker": "x"}))
    assert not is_worked_on(tmp_path)


@pytest.mark.parametrize("damage", [b"\0\xff\n", b"x,a,1\n", b"1,a\n", b"1,a,x\n", b'"1,a,2\n'])
def test_rows_of_curves_that_are_damaged_are_left_out(tmp_path: Path, damage: bytes) -> None:
    logger = Csv(save_dir=str(tmp_path))
    for step in range(4):
        logger.log_metrics({"a": step / 3}, step)
    lines = logger.file.read_bytes().splitlines(keepends=True)
    logger.file.write_bytes(b"".join([*lines[:2], damage, *lines[2:], b"9,a,0.12"]))
    expected = [(step, step / 3) for step in range(4)]
    assert read_metrics(logger.file) == {"a": expected}
    logger.rewind(3)
    assert read_metrics(logger.file) == {"a": expected[:3]}
    assert logger.file.read_bytes() == b"".join(lines[:4])


def test_a_configuration_that_was_changed_is_told(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    file = run / "config.yaml"
    text = file.read_text()
    assert not was_edited(run)
    # From before there was a checksum.
    file.write_text(text.partition("\n")[2])
    assert not was_edited(run)
    other = text.replace("overlap: 0.0", "overlap: 0.5")
    for changed in (other, text[:-9], text.replace("\n", "", 1)):
        file.write_text(changed)
        assert was_edited(run)
    file.write_text(other)
    assert main(["evaluate", str(run), "evaluation.subsets=[flair]"]) == 0
    assert f"{file} was changed since the training wrote it" in "".join(capsys.readouterr())
    save_config(run, OmegaConf.create({"seed": 0}))
    assert not was_edited(run)


def test_rows_of_curves_that_have_changed_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = Csv(save_dir=str(tmp_path))
    for step in range(4):
        logger.log_metrics({"a": step / 3}, step)
    seal = logger.seal(3)
    logger.rewind(3, seal)
    assert "was changed" not in caplog.text
    logger.file.write_text(logger.file.read_text().replace("0.33", "0.32"))
    with caplog.at_level("INFO"):
        logger.rewind(3, seal)
    assert f"{logger.file} was changed since the checkpoint was saved" in caplog.text
    # What stands there in a checkpoint of somebody else is no seal.
    for other in (None, 5, [], [1], ["a", "b"]):
        logger.rewind(3, other)
