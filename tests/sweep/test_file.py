"""Sweep files: found, read, refused, checked against the experiment, and turned into commands."""

import sys
from pathlib import Path

import pytest
import yaml

from bts_lightning.config.merge import SEARCH
from bts_lightning.errors import ConfigError
from bts_lightning.runs.devices import share_devices
from bts_lightning.sweep.file import check_sweep, find_sweep, read_sweep

SHIPPED = sorted(next(f / "sweeps" for f in SEARCH if (f / "sweeps").is_dir()).glob("*.yaml"))
# The experiment that a file is about, where it is not the one of its name.
EXPERIMENTS = {"default": ["rfnet"], "medmap": ["rfnet", "medmap"], "subsets": ["rfnet"]}

TREE = {
    "method": "random",
    "metric": {"name": "val/dice/mean", "goal": "maximize"},
    "parameters": {"net.width": {"values": [4, 8]}, "net.dropout": {"min": 0.0, "max": 0.5}},
}


def write(folder: Path, **changes: object) -> Path:
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in (TREE | changes).items() if v is not None}))
    return file


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_shipped_sweep_fits_its_experiment(file: Path):
    sweep = read_sweep(file)
    check_sweep(sweep, EXPERIMENTS.get(file.stem, [file.stem]))
    assert sweep.metric == "val/dice/mean"
    assert sweep.method == "grid" or sweep.run_cap


def test_the_command_is_that_of_the_agent_with_this_python(tmp_path: Path):
    command = read_sweep(write(tmp_path)).trial_command(
        ["tiny", "data.root=x"], {"net.width": 4, "net.dropout": None}
    )
    start = ["/usr/bin/env", sys.executable, "-P", "-m", "bts_lightning", "train"]
    assert command == [*start, "tiny", "data.root=x", "net.width=4", "net.dropout=None"]


def test_all_macros_are_filled_in_as_by_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PLACE", "there")
    macros = ["args", "args_no_boolean_flags", "args_no_equals", "args_json", "args_append_hydra"]
    command = ["x/${envvar:PLACE}", *(f"${{{name}}}" for name in macros), "${unheard_of}"]
    given = {"a": 1, "yes": True, "no": False}
    assert read_sweep(write(tmp_path, command=command)).trial_command([], given) == [
        "x/there",
        *("--a=1", "--yes=True", "--no=False"),
        *("--a=1", "--yes"),
        *("--a", "1", "--yes", "True", "--no", "False"),
        '{"a": 1, "yes": true, "no": false}',
        *("+a=1", "+yes=True", "+no=False"),
    ]


def test_wandb_gets_the_file_with_the_experiment_in_its_command(tmp_path: Path):
    tree = read_sweep(write(tmp_path), "name").for_wandb(["tiny", "data.root=x"], 7)
    assert tree["command"][:5] == ["${env}", "${interpreter}", "-P", "-m", "${program}"]
    assert tree["command"][5:] == ["train", "tiny", "data.root=x", "${args_no_hyphens}"]
    assert tree["parameters"] == TREE["parameters"]
    assert (tree["program"], tree["name"], tree["run_cap"]) == ("bts_lightning", "name", 7)


def test_a_program_of_somebody_else_may_import_what_lies_beside_it(tmp_path: Path):
    start = ["${env}", "${interpreter}", "-m", "${program}", "${args}"]
    sweep = read_sweep(write(tmp_path, command=start, program="mine"))
    assert sweep.for_wandb([], None)["command"] == start
    assert sweep.trial_command([], {})[1:] == [sys.executable, "-m", "mine"]


def test_the_last_experiment_with_a_sweep_chooses(tmp_path: Path):
    folder = tmp_path / "sweeps"
    folder.mkdir()
    for name in ("default", "rfnet", "medmap"):
        (folder / f"{name}.yaml").touch()

    def chosen(*words: str) -> str:
        return find_sweep(None, words, [tmp_path])[1]

    assert chosen("rfnet", "data.root=x") == "rfnet"
    assert chosen("rfnet", "medmap", "smoke") == "medmap"
    assert chosen("unet") == "default"
    assert find_sweep("rfnet", ["unet"], [tmp_path])[0] == folder / "rfnet.yaml"
    with pytest.raises(ConfigError, match=r"'rfnett'; did you mean rfnet\?"):
        find_sweep("rfnett", ["unet"], [tmp_path])


def test_numbers_may_be_written_as_python_does(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("method: random\nmetric: {name: a}\nparameters: {lr: {min: 1e-5, max: 1e-2}}\n")
    sweep = read_sweep(file)
    assert sweep.parameters[0].numbers == {"min": 1e-5, "max": 1e-2}
    assert sweep.for_wandb([], None)["parameters"] == {"lr": {"min": 1e-5, "max": 1e-2}}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"method": "bayesian"}, "choose grid, random, bayes"),
        ({"metrik": {}}, "unknown key 'metrik'; did you mean metric?"),
        ({"metric": None}, "metric needs a name"),
        ({"metric": {"name": "a", "goal": "max"}}, "choose minimize, maximize"),
        ({"metric": {"name": "a", "target": "high"}}, "metric.target is high; give a number"),
        ({"run_cap": 0}, "run_cap is 0"),
        ({"parameters": None}, "parameters is empty"),
        ({"method": "grid"}, "net.dropout: a grid needs values"),
        ({"early_terminate": {"type": "median"}}, "type: hyperband"),
        ({"command": "python"}, "command must be a list"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, changes: dict[str, object], told: str):
    with pytest.raises(ConfigError, match=r"mine\.yaml: ") as error:
        read_sweep(write(tmp_path, **changes))
    assert told in str(error.value)


def test_a_misspelt_key_starts_no_sweep(tmp_path: Path):
    file = write(tmp_path, parameters={"net.widht": {"values": [4]}})
    with pytest.raises(ConfigError, match=r"net\.widht'; did you mean net\.width"):
        check_sweep(read_sweep(file), ["unet"])


def test_each_value_is_tried_with_the_experiment(tmp_path: Path):
    file = write(tmp_path, parameters={"net.width": {"values": [4, "wide"]}})
    with pytest.raises(ConfigError, match="wide: expected int"):
        check_sweep(read_sweep(file), ["unet"])


def test_an_experiment_needs_a_place_in_the_command(tmp_path: Path):
    with pytest.raises(ConfigError, match="no place for unet"):
        check_sweep(read_sweep(write(tmp_path, command=["python", "mine.py"])), ["unet"])


def test_gpus_are_shared_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4,5")

    def seen(agents: int | None) -> list[str | None]:
        return [environment.get("CUDA_VISIBLE_DEVICES") for environment in share_devices(agents)]

    assert seen(None) == ["3", "4", "5"]
    assert seen(2) == ["3,5", "4"]
    assert seen(4) == ["3", "4", "5", "3"]
    assert seen(1) == [None]


def test_cores_are_shared_out_unless_the_user_has_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("bts_lightning.runs.devices.cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def threads(agents: int) -> list[str | None]:
        return [environment.get("OMP_NUM_THREADS") for environment in share_devices(agents)]

    assert threads(1) == [None]
    assert threads(3) == ["2"] * 3
    assert threads(20) == ["1"] * 20
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert threads(3) == [None] * 3
