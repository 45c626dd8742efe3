"""A run as a teacher: what trains beside it, and what is refused."""

import os
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from bts_lightning import config, runs
from bts_lightning.__main__ import main
from bts_lightning.data.cache.cached_case import CachedCase, sealed
from bts_lightning.data.module import BratsDataModule
from bts_lightning.data.splits import PARTS, Split
from bts_lightning.distillation import Teacher
from bts_lightning.errors import ConfigError
from bts_lightning.losses import RegionLoss
from bts_lightning.networks.unet import UNet
from bts_lightning.runs.checkpoints import read_checkpoint

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")
TINY = [
    *["kd_unet", "smoke", "net.width=4", "net.poolings=2", "net.width_limit=8"],
    *["data.patch=16", "data.steps_per_epoch=2", "trainer.max_epochs=1", "trainer.devices=1"],
    *["trainer.accelerator=cpu", "trainer.deterministic=true", "callbacks.overlays=null"],
    *["evaluation.window=32", "evaluation.overlap=0"],
]
TEACH = ["no_distillation", "data.availability.subset=t1+t1c+t2+flair"]


@pytest.fixture(scope="module")
def teacher(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a teacher with an adaptor for one epoch."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(runs.RUN_VARIABLE, str(folder))
        words = [*TINY, "adaptor", *TEACH, f"data.root={phantom}"]
        assert main(["train", *words]) == 0
    return folder


def train(*words: str) -> int:
    os.environ.pop(runs.RUN_VARIABLE, None)
    return main(["train", *words])


def the_run() -> Path:
    (found,) = Path("runs").glob("*/*/config.yaml")
    return found.parent


def test_a_student_trains_stops_and_resumes_with_its_teacher(
    teacher: Path, phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY, f"data.root={phantom}", f"task.teacher={teacher}", "kd_anchor", "adaptor"]
    assert train(*words, "trainer.max_epochs=2") == 0, capsys.readouterr().err
    straight = the_run().rename("straight")
    assert train(*words) == 0
    run = the_run()
    assert train(str(run), "trainer.max_epochs=2") == 0, capsys.readouterr().err
    last = [read_checkpoint(max((r / "checkpoints").glob("epoch_*"))) for r in (straight, run)]
    assert all("teacher" not in name for name in last[0]["state_dict"])
    assert last[1]["teacher"]["run"] == str(teacher)
    assert all(torch.equal(v, last[1]["state_dict"][n]) for n, v in last[0]["state_dict"].items())
    curves = (run / "logs" / "metrics.csv").read_text()
    for name in ("distillation/logits", "distillation/prototypes", "distillation/anchor"):
        assert f"train/{name}" in curves
    assert "train/distilled_share,1" in curves


def test_a_student_is_evaluated_without_its_teacher(
    teacher: Path, phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = teacher.rename(teacher.with_name("lent"))
    try:
        assert train(*TINY, f"data.root={phantom}", f"task.teacher={teacher}") == 0
    finally:
        teacher = teacher.rename(teacher.with_name("run"))
    run = the_run()
    assert main(["evaluate", str(run), "--device", "cpu"]) == 0, capsys.readouterr().err
    assert (run / "evaluation" / "test" / "cases.csv").is_file()
    assert train(str(run), "trainer.max_epochs=2") == 2
    assert "lent is not a run" in capsys.readouterr().err


def test_another_teacher_than_at_the_start_is_refused(
    teacher: Path, phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*TINY, f"data.root={phantom}", f"task.teacher={teacher}") == 0
    run = the_run()
    assert train(str(run), "trainer.max_epochs=2", "no_distillation") == 2
    assert f"began with the weights of {teacher}" in capsys.readouterr().err


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert train(*words) == 2
    *progress, line = capsys.readouterr().err.strip().splitlines()
    assert all(said.startswith("Preparing") for said in progress)
    assert line.startswith("error: ")
    assert not list(Path().glob("runs/*/*/checkpoints/*")), "nothing was trained"
    return line


def test_a_missing_or_foreign_teacher_is_one_line(
    teacher: Path, phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY, f"data.root={phantom}"]
    assert "task.teacher has no value yet" in refused(words, capsys)
    line = refused([*words, "task.teacher=runs/nowhere"], capsys)
    assert "teacher runs/nowhere is not a run: it has no config.yaml; train one first" in line
    untrained = Path("untrained")
    runs.save_config(untrained, config.load([str(runs.config_file(teacher))]))
    line = refused([*words, f"task.teacher={untrained}"], capsys)
    assert "has no checkpoint" in line
    other = [*words, f"task.teacher={teacher}", "net.out_channels=3"]
    region = ["task.loss._target_=bts_lightning.losses.RegionLoss"]
    line = refused([*other, *region], capsys)
    assert "trained with LabelLoss on 4 channels, the student has RegionLoss on 3" in line
    line = refused([*words, f"task.teacher={teacher}", "data.normalisation=legacy_rfnet"], capsys)
    assert "saw data.normalisation=zscore, the student has legacy_rfnet" in line


@pytest.mark.parametrize(
    ("theirs", "ours", "line"),
    [
        ("train", "test", "trained on 1 of the student's 1 test cases"),
        ("train", "val", "trained on 1 of the student's 1 val cases"),
        ("val", "test", "was chosen by its score on 1 of the student's 1 test cases"),
    ],
)
def test_a_teacher_that_saw_what_scores_the_student_is_refused(
    theirs: str,
    ours: str,
    line: str,
    teacher: Path,
    phantom: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    split = Split.load(teacher / "split.json")
    names = [*split.train, *split.val, *split.test]
    leaked = getattr(split, theirs)[0]
    rest = [name for name in split.train if name != leaked]
    own = {"train": rest[:3], "val": split.val, "test": split.test}
    if theirs == "val":
        own["val"] = [name for name in split.test if name != leaked][:1]
    own[ours] = [leaked]
    used = [name for part in own.values() for name in part]
    assert len(set(used)) == len(used) <= len(names)
    lists = {part: Path(f"{part}.txt") for part in own}
    for part, file in lists.items():
        file.write_text("\n".join(own[part]))
    words = [f"data.split.{part}={file}" for part, file in lists.items()]
    found = refused([*TINY, f"data.root={phantom}", f"task.teacher={teacher}", *words], capsys)
    assert line in found
    assert f"such as {leaked}; give the student the teacher's split, data.split=" in found


def scans(root: Path, *names: str) -> BratsDataModule:
    """Describe cases of patients who came back, without a voxel."""
    data = BratsDataModule(root, split="random")
    for name in names:
        case = CachedCase(root / name)
        case.folder.mkdir(parents=True)
        told = {"name": name, "patient": name[:-4], "volumes_ml": {"WT": 1}}
        (case.folder / "case.json").write_bytes(sealed(told))
        data.cases[name] = case
    return data


@pytest.mark.parametrize(("seen", "is_refused"), [("BraTS-GLI-00000-000", True), ("other", False)])
def test_a_teacher_that_saw_another_scan_of_a_test_patient_is_refused(
    seen: str, is_refused: bool
) -> None:
    # The student's data set has a later scan of patient 0, and not the one that the teacher saw.
    data = scans(Path("data"), *(f"BraTS-GLI-0000{i}-001" for i in range(3)))
    parts = {part: (name,) for part, name in zip(PARTS, sorted(data.cases)[::-1], strict=True)}
    data._split = Split(**parts, name="ours", fingerprint="")
    assert data._split.test == ("BraTS-GLI-00000-001",)
    node = {"data": {"_target_": "bts_lightning.data.module.BratsDataModule", "root": "data"}}
    net, config = UNet(**UNet.small()), OmegaConf.create(node)
    teacher = Teacher(Path("teacher"), net, RegionLoss(), config, "sum")
    train = (seen, *data._split.train)
    Split(train, data._split.val, (), "theirs", "").save(teacher.run / "split.json")
    if not is_refused:
        teacher.check_data(data)
        return
    with pytest.raises(ConfigError, match="trained on 1 of the student's 1 test cases"):
        teacher.check_data(data)


def test_a_patch_that_the_teacher_cannot_take_is_refused(
    teacher: Path, phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY, f"data.root={phantom}", f"task.teacher={teacher}"]
    line = refused([*words, "net.poolings=1", "data.patch=18"], capsys)
    assert "cannot take data.patch: UNet needs sizes that are multiples of 4" in line


def test_a_teacher_of_another_data_set_is_refused(
    teacher: Path, phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("copy").mkdir()
    for file in teacher.iterdir():
        (Path("copy") / file.name).symlink_to(file)
    Path("copy/split.json").unlink()
    Split(("x",), ("y",), ("z",), "theirs", "other").save(Path("copy/split.json"))
    found = refused([*TINY, f"data.root={phantom}", "task.teacher=copy"], capsys)
    assert "knows none of the cases" in found
