"""Several runs in one command: predicted, evaluated, refused, resumed."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from bts_lightning import runs
from bts_lightning.__main__ import main
from bts_lightning.commands.evaluate import evaluate
from bts_lightning.config import build
from bts_lightning.runs.opening import load_run
from tests.tiny_training import TWO, another, bts

FEW = ["evaluation.subsets=[t1c+flair]"]


@pytest.fixture
def three(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Give three runs, each with a window and a temperature of its own."""
    monkeypatch.chdir(tmp_path)
    own = [{}, {"evaluation__window": 48}, {"evaluation__temperature": 1.5}]
    return [
        another(trained, Path("runs/uhemis") / str(seed), seed, **changes)
        for seed, changes in enumerate(own)
    ]


def images(phantom: Path) -> list[str]:
    case = phantom / "BraTS2021_00000"
    return [
        "--t1c",
        f"{case}/{case.name}_t1ce.nii.gz",
        "--flair",
        f"{case}/{case.name}_flair.nii.gz",
    ]


def predicted(folders: list[Path], phantom: Path, out: str, *words: str) -> np.ndarray:
    given = [*map(str, folders), *images(phantom), "--out", out, "--device", "cpu", *words]
    assert main(["predict", *given, "--probabilities"]) == 0
    return nib.load(out.replace(".nii", "_probabilities.nii")).get_fdata(dtype=np.float32)


def refused(words: list[object], capsys: pytest.CaptureFixture[str], verb: str = "evaluate") -> str:
    assert main([verb, *map(str, words), "--device", "cpu"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_three_runs_say_the_mean_of_what_each_says(three: list[Path], phantom: Path) -> None:
    each = [predicted([run], phantom, f"{run.name}.nii.gz") for run in three]
    assert np.abs(each[0] - each[1]).max() > 0.01
    mean = predicted(three, phantom, "all.nii.gz")
    np.testing.assert_allclose(mean, np.mean(each, axis=0), rtol=0, atol=1e-6)


def test_each_sees_the_case_as_it_was_taught_to(
    three: list[Path], trained: Path, phantom: Path
) -> None:
    other = another(trained, Path("runs/other/1"), 7, data__normalisation="legacy_rfnet")
    each = [predicted([run], phantom, f"{run.parent.name}.nii.gz") for run in (three[0], other)]
    mean = predicted([three[0], other], phantom, "all.nii.gz")
    # The box of the first is smaller, beyond it nothing is said.
    inside = each[0].any(axis=-1)
    np.testing.assert_allclose(mean[inside], np.mean(each, axis=0)[inside], rtol=0, atol=1e-6)
    assert not mean[~inside].any()
    table = pd.read_csv(evaluate([three[0], other], device="cpu", words=FEW) / "cases.csv")
    assert len(table) == 2 * 3


def test_an_evaluation_of_several_has_a_folder_of_its_own_and_names_them_all(
    three: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = evaluate(three, device="cpu", words=FEW)
    assert folder.parts[:1] == ("ensembles",)
    assert folder.parts[2:] == ("evaluation", "test")
    told = json.loads((folder / "protocol.json").read_text())
    assert [one["run"] for one in told["members"]] == list(map(str, three))
    assert len({one["checkpoint_sha256"] for one in told["members"]}) == 3
    assert all(one["split"]["name"] for one in told["members"])
    assert told["window"] == "32×32×32 | 48×48×48 | 32×32×32"
    assert told["temperature"] == "1 | 1 | 1.5"
    assert told["experiment"] == "uhemis: mean of 3 runs"
    assert not list(Path("runs").glob("*/*/evaluation"))
    page = (folder / "report.html").read_text()
    assert "member 3" in page
    alone = evaluate(three[0], device="cpu", words=FEW)
    assert main(["report", str(folder.parent.parent)]) == 0
    assert main(["compare", str(alone), str(folder.parent.parent), "--out", "both"]) == 0
    assert str(folder.parts[1]) in capsys.readouterr().out


def test_an_interrupted_evaluation_of_several_goes_on(three: list[Path]) -> None:
    folder = evaluate(three, device="cpu", words=FEW)
    expected = (folder / "cases.csv").read_bytes()
    before = {file: file.stat().st_mtime_ns for file in (folder / "rows").iterdir()}
    dropped = min(before)
    dropped.unlink()
    (folder / "cases.csv").unlink()
    # Moved runs are the same runs.
    moved = [Path(shutil.move(run, run.with_name(f"moved-{run.name}"))) for run in three]
    assert evaluate(moved, device="cpu", words=FEW) == folder
    after = {file: file.stat().st_mtime_ns for file in (folder / "rows").iterdir()}
    assert [file for file in before if after[file] != before[file]] == [dropped]
    assert (folder / "cases.csv").read_bytes() == expected


def test_cases_that_a_member_has_seen_are_refused_or_marked(
    three: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    split = json.loads((three[1] / "split.json").read_text())
    split["train"], split["test"] = split["test"], split["train"]
    del split["checksum"]
    (three[1] / "split.json").write_text(json.dumps(split))
    line = refused([*three, *FEW], capsys)
    assert f"2 of 2 cases of the test part of {three[0]}" in line
    assert f"have trained or chosen {three[1]}" in line
    assert "--seen" in line
    assert not Path("ensembles").exists()
    assert main(["evaluate", *map(str, three), *FEW, "--seen", "--ensemble", "known"]) == 0
    folder = Path("ensembles/known/evaluation/test")
    said = "2 of 2 cases have trained or chosen 1 of the 3 networks"
    assert f"leak: {said}" in capsys.readouterr().out
    for page in ("summary.md", "report.html"):
        assert f"Leak: {said}" in (folder / page).read_text()
    # None has trained on these.
    evaluate(three, device="cpu", words=FEW, part="val")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"evaluation__hd95": "directed"}, "differ in evaluation.hd95 (pooled and directed)"),
        ({"evaluation__subsets": ["t1"]}, "differ in evaluation.subsets (None and ['t1'])"),
        ({"evaluation__et_minimum": 9}, "differ in evaluation.et_minimum (0 and 9)"),
    ],
)
def test_what_the_mean_has_once_must_be_the_same(
    change: dict[str, object],
    line: str,
    three: list[Path],
    trained: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = another(trained, Path("runs/other/1"), 7, **change)
    assert line in refused([three[0], other], capsys)


def test_runs_of_two_schemes_have_no_mean(
    three: list[Path], trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"task__loss__scheme": "ped", "data__scheme": "ped", "net__out_channels": 5}
    other = another(trained, Path("runs/other/1"), 7, **changes)
    weights = build(load_run(other).task).state_dict()
    torch.save({"state_dict": weights}, runs.best_checkpoint(other))
    line = refused([three[0], other], capsys)
    assert "tell other tissues apart (data.scheme is brats and ped)" in line


def test_wrong_words_about_several_runs_are_one_line(
    three: list[Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    one, two, _ = three
    assert "is given twice" in refused([one, two, one.resolve()], capsys)
    assert "weighs modalities" in refused([one, two, "evaluation.importance=true"], capsys)
    file = next((one / "checkpoints").iterdir())
    assert "each has its own" in refused([one, two, "--checkpoint", file], capsys)
    assert "is for several runs" in refused([one, "--seen"], capsys)
    assert "is for several runs" in refused([one, "--ensemble", "x"], capsys)
    assert "a folder in ensembles" in refused([one, two, "--ensemble", "a/b"], capsys)
    line = refused([one, two, "--part", "val", "--fit-temperature"], capsys)
    assert "give one run at a time" in line
    assert "runs/uhemis/9 is not a run" in refused([one, "runs/uhemis/9"], capsys)
    words = [one, two, "--t1", "x.nii.gz", "--out", "seg.nii.gz", "evaluation.temperature=fitted"]
    assert f"{one}/temperature.json: no such file" in refused(words, capsys, "predict")


@pytest.mark.slow
def test_the_table_of_several_does_not_depend_on_the_ranks(
    three: list[Path], tmp_path: Path
) -> None:
    words = ["evaluate", *map(str, three), *FEW, "trainer.accelerator=cpu", "--part", "train"]
    one, two = (["--ensemble", name] for name in ("one", "two"))
    bts(*words, *one, folder=tmp_path)
    bts(*words, *two, *TWO, folder=tmp_path)
    tables = [Path("ensembles") / n / "evaluation/train/cases.csv" for n in ("one", "two")]
    assert tables[0].read_bytes() == tables[1].read_bytes()
