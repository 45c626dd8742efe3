"""The command line answers at once, passes words on, and says what is wrong in one line."""

import os
import re
import subprocess
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from keyword import iskeyword
from pathlib import Path

import pytest
import torch

import bts_lightning
from bts_lightning import commands, config
from bts_lightning.__main__ import VERBS, main, parse
from bts_lightning.commands.words import runs_and_overrides
from bts_lightning.config import targets
from bts_lightning.config.merge import SEARCH

EXPERIMENT = """# A line that says what this is.
net: {_target_: torch.nn.Linear, in_features: 2, out_features: 1}
task: {_target_: lightning.pytorch.demos.boring_classes.BoringModel}
data: {_target_: lightning.pytorch.demos.boring_classes.BoringDataModule}
trainer: {_target_: lightning.Trainer, max_epochs: 2}
logger: {csv: {_target_: lightning.pytorch.loggers.CSVLogger, version: '${net.out_features}'}}
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setattr(targets, "_allowed_by_user", set())
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "tiny.yaml").write_text(EXPERIMENT)
    return tmp_path


def test_help_lists_every_verb_and_loads_nothing_heavy():
    code = (
        "import sys; from bts_lightning.__main__ import main\n"
        "try: main(['--help'])\n"
        "finally: print('loaded', sorted({'torch', 'lightning', 'numpy', 'omegaconf', 'rich'}"
        " & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "loaded []" in done.stdout
    for verb in VERBS:
        assert f"\n    {verb} " in done.stdout


def test_the_version_comes_with_what_a_report_of_a_fault_needs(capsys):
    assert main(["--version"]) == 0
    written = capsys.readouterr().out
    assert written.startswith(f"bts {version('bts_lightning')}, commit ")
    # A wheel may name its build in the package alone, as 2.13.0+cu130.
    assert f"torch        {torch.__version__.partition('+')[0]}" in written
    assert "python " in written


def test_a_checkout_works_without_an_installation(capsys, monkeypatch):
    def absent(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr("bts_lightning.runs.facts.version", absent)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("bts not installed, commit ")
    assert main(["show"]) == 0


def test_no_verb_prints_the_help_and_fails(capsys):
    assert main([]) == 2
    assert "usage: bts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("trian tiny", "unknown verb 'trian'; did you mean train?"),
        ("xyz", "unknown verb 'xyz'; choose from agent, bench, best,"),
        ("--verbose", "there is no option --verbose; see: bts --help"),
        ("phantom", "the following arguments are required: out; see: bts phantom --help"),
        ("phantom out --size 3x3", "argument --size: '3x3' is not a size as 96x96x80"),
        ("phantom out --case 3", "there is no option --case; did you mean --cases? See: bts "),
        ("phantom out more", "nobody asked for more; see: bts phantom --help"),
        ("compare", "the following arguments are required: RUN|EXPERIMENT"),
        ("predict a --out b --t1x c", "unknown option --t1x; overrides are written key=value"),
        ("predict a --out b --t1ce c", "or --key=value; did you mean --t1c?"),
        ("evaluate", "name a run, as runs/a2fseg/20260131-120000, or an experiment; got none"),
        ("evaluate tiny", "no run below runs/tiny; train one first"),
        ("evaluate imfus", "no run below runs/imfus; did you mean imfuse?"),
        ("export", "are required: RUN|EXPERIMENT, OUT.onnx; see: bts export --help"),
        ("predict runs/tiny/1 --out seg.nii.gz", "runs/tiny/1 is not a run"),
        ("train tiny --max-epochs 3", "unknown option --max-epochs; overrides are written"),
        ("train a2fseg", "data.root is data, which does not exist; give a data set"),
        ("sweep data.root=data", "name the experiment to search"),
        ("sweep a2fseg --local", "data.root is data, which does not exist"),
        ("study", "name the experiments in one word"),
        ("demo trainer.max_epoch=1", "did you mean trainer.max_epochs?"),
        ("study a2fseg --only 0 --table", "--only trains, and --table does not; leave one"),
        ("study a2fseg --name", "argument --name: expected one argument; see: bts study --help"),
        ("distill kd_unet --agents x", "argument --agents: invalid int value: 'x'; see: bts dist"),
        ("bench step --steps x", "argument --steps: invalid int value: 'x'; see: bts bench step"),
        ("bench --quick step", "options stand behind the family: bts bench step --help"),
        ("bench loadr", "there is no 'loadr'; did you mean loader? See: bts bench --help"),
        ("evaluate a --part tets", "argument --part: there is no 'tets'; did you mean test?"),
        ("demo --opne", "unknown option --opne; overrides are written key=value or --key=value; "),
        ("agent", "the following arguments are required: sweep; see: bts agent --help"),
        ("agent a/b/c --count 0", "--count is 0; give 1 or more"),
        ("report", "the following arguments are required: RUN; see: bts report --help"),
        ("show tiny net.biass=1", "unknown key 'net.biass'; did you mean net.bias?"),
        ("show tiny net.bias=abc", "net.bias=abc: expected bool, got str"),
        ("show tny", "no experiment is named 'tny'; did you mean tiny?"),
        ("show tiny nett", "no experiment is named 'nett'"),
        ("show tiny net.bias", "net.bias has no value here"),
        ("show tiny trainer.max_epochs", "trainer.max_epochs is 2, not a class with arguments"),
        ("show tiny net._target_=os.system", "comes from package 'os'"),
        ("train --help tiny trainer.foo=1 data=3 nett=2", "unknown key 'nett'; did you mean net?"),
    ],
)
def test_a_mistake_is_one_line_and_exits_with_2(capsys, line, text):
    assert main(line.split()) == 2
    written = capsys.readouterr().err
    assert written.startswith("error: ")
    assert text in written
    assert written.count("\n") == 1


def test_a_mistake_shows_no_traceback_in_a_real_process(here):
    done = subprocess.run(
        [sys.executable, "-m", "bts_lightning", "show", "tny"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == "error: no experiment is named 'tny'; did you mean tiny?\n"


def test_nothing_is_imported_from_the_current_folder(here):
    for name in ("argparse", "yaml", "omegaconf", "rich"):
        (here / f"{name}.py").write_text("raise SystemExit('executed')")
    done = subprocess.run(
        [sys.executable, "-m", "bts_lightning", "show", "tny"], capture_output=True, text=True
    )
    assert done.stderr == "error: no experiment is named 'tny'; did you mean tiny?\n"


def test_a_checkout_that_is_not_installed_is_found_by_its_processes(here):
    (here / "bts_lightning").symlink_to(Path(bts_lightning.__file__).parent)
    (here / "yaml.py").write_text("raise SystemExit('executed')")
    (here / "own.py").write_text("import os\nraise SystemExit(os.environ['PYTHONPATH'])")
    words = ["show", "tiny", "net", "--allow", "own", "net._target_=own.Net"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-m", "bts_lightning", *words],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stderr == f"{here}\n"


def test_a_server_that_is_allowed_goes_where_packages_go():
    words = ["train", "tiny", "--allow", "mine", "--allow-host", "wandb.example.org"]
    assert parse(words).allow == ["mine", "//wandb.example.org"]


def test_no_process_of_ours_looks_into_the_current_folder():
    root = Path(bts_lightning.__file__).parent
    starts = [
        (file.name, option)
        for file in root.rglob("*.py")
        for option in re.findall(
            r'\[(?:sys\.executable|str\(python\)|python), *"([^"]+)"', file.read_text("utf-8")
        )
    ]
    assert len(starts) >= 9
    assert {option for _, option in starts} == {"-P"}, starts


@pytest.mark.parametrize("given", [None, "ACTIVE"])
def test_threads_wait_without_spinning_unless_the_user_has_said(given: str | None):
    # Set before torch is imported, which reads it once.
    program = (
        "import os, sys; sys.argv = ['bts']; from bts_lightning.__main__ import main; main(); "
        "assert 'torch' not in sys.modules; print(os.environ['OMP_WAIT_POLICY'])"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": given} if given else {}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == (given or "PASSIVE")


def test_an_interrupt_exits_with_130(here, capsys):
    (here / "impatient.py").write_text("raise KeyboardInterrupt")
    assert main(["show", "tiny", "net", "--allow=impatient", "net._target_=impatient.Net"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_closed_pipe_is_no_error(here):
    command = [sys.executable, "-m", "bts_lightning", "show"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.close()
    _, errors = child.communicate()
    assert errors == b""


def test_the_newest_run_of_an_experiment_is_meant_by_its_name(here):
    for name in ("20260101-000000", "20260102-000000"):
        run = here / "runs" / "tiny" / name
        run.mkdir(parents=True)
        (run / "config.yaml").write_text("")
    os.utime(here / "runs/tiny/20260101-000000/config.yaml", (0, 0))
    (found,), overrides = runs_and_overrides(["seed=1", "tiny"])
    assert (found.name, overrides) == ("20260102-000000", ["seed=1"])
    (found,), _ = runs_and_overrides(["runs/tiny/20260101-000000"])
    assert found.name == "20260101-000000"


def test_show_prints_the_merged_experiment_with_its_references(capsys):
    assert main(["show", "tiny", "trainer.max_epochs=7", "--net.bias=False"]) == 0
    written = capsys.readouterr().out
    assert "max_epochs: 7" in written
    assert "version: ${net.out_features}" in written
    assert "bias: false" in written


def test_show_prints_a_wrong_experiment_before_it_refuses_it(capsys):
    assert main(["show", "tiny", "net.biass=1"]) == 2
    assert "biass: 1" in capsys.readouterr().out


def test_show_of_a_node_lists_arguments_with_value_default_and_type(capsys):
    assert main(["show", "tiny", "net", "net.bias=false"]) == 0
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "net.in_features 2 required int" in rows
    assert "net.bias False True bool" in rows


def test_show_alone_lists_the_experiments_with_their_first_line(capsys):
    assert main(["show"]) == 0
    assert "tiny " in (written := capsys.readouterr().out)
    assert "A line that says what this is." in written


def test_mix_ins_stand_apart_from_experiments(capsys, here):
    (here / "experiments" / "wide.yaml").write_text("# A wide one.\nnet: {width: 9}\n")
    (here / "experiments" / "other.yaml").write_text("# Another.\nextends: [tiny]\n")
    assert main(["show"]) == 0
    experiments, mixins = capsys.readouterr().out.split("\nmix-ins, named behind an experiment:\n")
    assert "  base " in experiments
    assert "  tiny " in experiments
    assert "  other " in experiments
    assert "  wide " in mixins


@pytest.mark.parametrize("file", sorted(SEARCH[-1].glob("*.yaml")), ids=lambda file: file.stem)
def test_an_experiment_says_in_one_sentence_what_it_is(file):
    first = file.read_text().partition("\n")[0]
    assert re.fullmatch(r"# [A-Z`mn][^\n]{20,95}[^ .]\.", first), first
    assert all(first.count(a) == first.count(b) for a, b in ("()", "[]"))
    assert first.count("`") % 2 == 0
    has_network = "_target_" in (config.load([str(file)]).get("net") or {})
    assert first.startswith("# This mix-in ") == (not has_network and file.stem != "base")


def test_help_of_an_experiment_lists_all_its_keys(capsys):
    assert main(["train", "tiny", "--help"]) == 0
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "net.out_features 1 required int" in rows
    assert "trainer.max_epochs 2 null int | None" in rows
    assert "logger.csv.version ${net.out_features} null int | str | None" in rows


def test_help_of_train_lists_the_experiments(capsys):
    assert main(["train", "-h"]) == 0
    assert "tiny " in capsys.readouterr().out


def test_every_verb_is_a_module_and_every_module_helps_one():
    folder = Path(commands.__file__).parent
    helpers = {"words", "choose", "convert", "fit", "graph", "raw", "score", "segment", "streams"}
    helpers |= {"temperature"}
    assert {file.stem.rstrip("_") for file in folder.glob("[a-z]*.py")} == set(VERBS) | helpers
    for verb in VERBS:
        module = import_module(f"bts_lightning.commands.{verb}{'_' * iskeyword(verb)}")
        assert callable(module.add_arguments)
        assert callable(module.run)
