"""The table of curves, and W&B without an account."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from bts_lightning import config as configuration
from bts_lightning.errors import ConfigError, DataError, UserError
from bts_lightning.loggers import Csv, Wandb, check_server, has_credentials, read_metrics
from bts_lightning.loggers.cells import cells_among, heat_map, table_of


def test_metrics_of_different_names_share_one_table(tmp_path: Path):
    logger = Csv(save_dir=str(tmp_path))
    logger.log_metrics({"train/loss": 0.5}, step=0)
    logger.log_metrics({"val/dice/mean": 0.25, "train/loss": 0.125}, step=1)
    assert read_metrics(tmp_path / "metrics.csv") == {
        "train/loss": [(0, 0.5), (1, 0.125)],
        "val/dice/mean": [(1, 0.25)],
    }


def test_rewinding_drops_what_came_after_the_checkpoint(tmp_path: Path):
    logger = Csv(save_dir=str(tmp_path))
    for step in range(4):
        logger.log_metrics({"loss": float(step)}, step=step)
    logger.rewind(2)  # two steps are done: rows 0 and 1
    Csv(save_dir=str(tmp_path)).log_metrics({"loss": 7.0}, step=2)
    assert read_metrics(tmp_path / "metrics.csv")["loss"] == [(0, 0.0), (1, 1.0), (2, 7.0)]


def test_a_torn_last_row_is_dropped(tmp_path: Path):
    logger = Csv(save_dir=str(tmp_path))
    logger.log_metrics({"loss": 1.0}, step=0)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("1,lo")
    logger.rewind(5)
    assert read_metrics(tmp_path / "metrics.csv") == {"loss": [(0, 1.0)]}


@pytest.mark.parametrize("left", ["", "step,met"])
def test_a_table_of_which_a_full_disk_left_nothing_begins_anew(tmp_path: Path, left: str):
    (tmp_path / "metrics.csv").write_text(left)
    logger = Csv(save_dir=str(tmp_path))
    logger.rewind(0)
    logger.log_metrics({"loss": 1.0}, step=0)
    assert read_metrics(tmp_path / "metrics.csv") == {"loss": [(0, 1.0)]}


@pytest.mark.skipif(find_spec("tensorboard") is not None, reason="tensorboard is installed")
def test_tensorboard_is_asked_for_and_says_when_it_is_missing(tmp_path: Path):
    node = configuration.load(["unet_small", "tensorboard"]).logger.tensorboard
    with pytest.raises(ConfigError, match="Neither `tensorboard` nor `tensorboardX` is") as told:
        configuration.build(node, save_dir=str(tmp_path))
    assert "\n" not in str(told.value)


def test_wandb_goes_offline_by_itself_without_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    first = Wandb(save_dir=str(tmp_path / "runs/a/1/logs"))
    again = Wandb(save_dir=str(tmp_path / "runs/a/1/logs"))
    other = Wandb(save_dir=str(tmp_path / "runs/a/2/logs"))
    assert first._offline
    assert first._id == again._id != other._id


def test_a_run_keeps_its_name_on_the_server_where_it_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    logs = tmp_path / "elsewhere" / "2" / "logs"
    logs.mkdir(parents=True)
    told = {"id": "abc123", "project": "mine", "entity": "team", "scores": {"test/dice/ET": 0.5}}
    (logs / "wandb.json").write_text(json.dumps(told))
    # The variable chooses where a new run goes; this one is there already.
    monkeypatch.setenv("WANDB_PROJECT", "other")
    kept = Wandb(save_dir=str(logs))
    kept._recall()
    chosen = kept._wandb_init
    assert [chosen[part] for part in ("id", "project", "entity")] == ["abc123", "mine", "team"]
    fresh = Wandb(save_dir=str(tmp_path / "runs/a/1/logs"))._wandb_init
    assert fresh["project"] == "other"


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"id": 1}', '{"id": "a/b"}', '{"id": "a", "key": "b"}', "null"]
)
def test_a_name_that_is_none_is_told_in_one_line(tmp_path: Path, text: str):
    (tmp_path / "wandb.json").write_text(text)
    with pytest.raises(DataError, match=r"wandb\.json: .*delete it") as error:
        Wandb(save_dir=str(tmp_path))._recall()
    assert "\n" not in str(error.value)


def test_cells_of_a_validation_are_one_table_and_one_picture():
    metrics = {
        "val/t1c+flair/dice/ET": 1.0,
        "val/flair/dice/ET": 0.25,
        "val/flair/hd95/ET": 12.0,
        "val/dice/ET": 0.625,
        "val/dice/with_t1c": 1.0,
        "train/loss": 2.0,
    }
    cells = cells_among(metrics)
    assert list(cells) == list(metrics)[:3]
    heads, rows = table_of(cells)
    assert heads == ["subset", "dice ET", "hd95 ET"]
    assert rows == [["flair", 0.25, 12.0], ["t1c+flair", 1.0, None]]
    picture = heat_map(cells)
    # A head, two rows; more is deeper.
    assert picture.height == 3 * 22
    low, high = (sum(picture.getpixel((133, 22 * row + 3))) for row in (1, 2))
    assert high < low < 3 * 255


WANTED = """
import json, sys
from pathlib import Path
import pandas as pd
import bts_lightning.commands.fit, bts_lightning.commands.score
from bts_lightning.loggers import Wandb
logger = Wandb(save_dir="runs/a/1/logs")
assert "wandb" not in sys.modules
folder = Path("runs/a/1/evaluation/test")
folder.mkdir(parents=True)
for name in ("cases.csv", "protocol.json", "summary.md"):
    (folder / name).write_text("")
logger.use_data("abc")
logger.log_metrics({"val/t1c/dice/ET": 0.5}, step=0)
logger.alert("stopped")
rows = pd.DataFrame([{"case": "a"}])
logger.add_evaluation(folder, rows, {"dice/ET": 0.5}, {"data_fingerprint": "abc"})
print("\\n".join(str(path) for path in Path("runs").rglob("*wandb*")))
"""


@pytest.mark.slow
def test_wandb_is_imported_when_it_is_wanted_and_writes_nothing_when_disabled(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", WANTED],
        cwd=tmp_path,
        env=os.environ | {"WANDB_MODE": "disabled", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_wandb_is_online_with_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert not Wandb(save_dir=str(tmp_path / "runs/a/1/logs"))._offline


@pytest.mark.parametrize("host", ["api.wandb.ai", "api.forge.coreweave.com"])
def test_a_login_of_either_wandb_server_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not has_credentials()
    login = tmp_path / ".netrc"
    login.write_text(f"machine {host}\n  login user\n  password {'0' * 40}\n")
    login.chmod(0o600)
    assert has_credentials()
    # `wandb login --host` has chosen another server, for which there is no key.
    settings = tmp_path / ".config" / "wandb" / "settings"
    settings.parent.mkdir(parents=True)
    settings.write_text("[default]\nbase_url = http://wandb.local:8080\n")
    assert not has_credentials()
    login.write_text("machine wandb.local:8080\n  login user\n  password x\n")
    assert has_credentials()


@pytest.mark.parametrize("folder", ["wandb", ".wandb"])
def test_a_file_in_the_current_folder_does_not_choose_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "mine"))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    for name in ("WANDB_MODE", "WANDB_BASE_URL", "WANDB_DIR", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "settings").write_text("[default]\nbase_url = http://elsewhere.org\n")
    check_server()  # there is no key that it could get
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with pytest.raises(UserError, match=r"settings sends your W&B key to http://elsewhere\.org"):
        Wandb(save_dir="runs/a/1/logs")
    monkeypatch.setenv("WANDB_BASE_URL", "http://elsewhere.org")
    check_server()
    monkeypatch.delenv("WANDB_BASE_URL")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "settings").write_text("[default]\nbase_url = http://elsewhere.org\n")
    check_server()


def test_a_table_is_readable_while_a_row_is_written(tmp_path: Path):
    file = tmp_path / "metrics.csv"
    file.write_text("step,metric,value\n0,loss,0.5\n1,loss,0.2")
    assert read_metrics(file) == {"loss": [(0, 0.5)]}
