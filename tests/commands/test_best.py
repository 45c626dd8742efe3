"""`bts best`: what it prints is what the printed commands give."""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bts_lightning import runs
from bts_lightning.__main__ import main
from bts_lightning.data.splits import Split
from bts_lightning.files import sha256
from bts_lightning.runs.temperature import keep_temperature
from tests.tiny_training import another, bts

FEW = "evaluation.subsets=[t1c+flair]"
PLAIN = "evaluation.temperature=1"


@pytest.fixture
def study(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a study of two experiments with two seeds each, as if it had been trained."""
    monkeypatch.chdir(tmp_path)
    split = Split.load(trained / "split.json")
    split = replace(split, val=split.train[:2], train=split.train[2:], name="mine")
    split.save(tmp_path / "split.json")
    folder = Path("studies/mine")
    for seed, name in enumerate(("a", "a", "b", "b")):
        changes = {"data__split": str(tmp_path / "split.json"), "evaluation__window": 48}
        run = another(trained, folder / name / f"seed-{seed % 2}", seed, **changes)
        split.save(run / "split.json")
        (run / "trained.txt").write_text("now\n")
    return folder


def dice(folder: Path) -> float:
    """Give the mean Dice of an evaluation, over cases, then subsets and regions."""
    rows = pd.read_csv(folder / "cases.csv")
    return float(rows.groupby(["subset", "region"]).dice.mean().mean())


@pytest.mark.slow
def test_the_table_is_what_evaluations_give(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["best", "mine", FEW, PLAIN, "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    told = json.loads((study / "best.json").read_text())
    lines = [line.strip("| ").split(" | ") for line in (study / "best.md").read_text().splitlines()]
    rows = {cells[0]: float(cells[5]) for cells in lines if cells[0] in ("a", "b", "a + b")}
    both = [study / name / f"seed-{seed}" for name in "ab" for seed in (0, 1)]
    plain = [FEW, PLAIN, "--part", "val", "--device", "cpu"]
    for name, folders in {"a": both[:2], "b": both[2:], "a + b": both}.items():
        place = ["--ensemble", name.replace(" ", "")]
        assert main(["evaluate", *map(str, folders), *plain, *place]) == 0
        found = dice(Path("ensembles") / name.replace(" ", "") / "evaluation" / "val")
        assert rows[name] == pytest.approx(100 * found, abs=0.006), name
    assert told["chosen"] == max(rows, key=lambda name: rows[name])
    # What is printed can be pasted, and gains what was said on these cases or more.
    (line,) = [line for line in said.splitlines() if line.startswith("bts evaluate")]
    words = [*shlex.split(line)[1:], "--part", "val", "--device", "cpu", "--ensemble", "chosen"]
    assert main(words) == 0
    cleaned = dice(Path("ensembles/chosen/evaluation/best"))
    assert 100 * cleaned >= max(rows.values()) - 0.006
    assert not list(study.glob("*/*/evaluation"))


def test_what_was_counted_is_not_segmented_again(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["best", str(study), FEW, PLAIN, "--device", "cpu"]
    assert main(words) == 0
    page = (study / "best.md").read_bytes()
    kept = sorted((study / "best" / "cases").iterdir())
    assert len(kept) == 2
    kept[0].write_text(kept[0].read_text().replace("[", "[1", 1))
    before = kept[1].stat().st_mtime_ns
    assert main(words) == 0
    assert (study / "best.md").read_bytes() == page
    assert kept[1].stat().st_mtime_ns == before
    # Another window is another count.
    assert main([*words, "evaluation.window=32"]) == 0
    assert kept[1].stat().st_mtime_ns != before


@pytest.mark.slow
def test_temperatures_are_applied_where_they_help_other_patients(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for held_out, said in ((0.2, "applied"), (0.4, "left at 1")):
        for run in study.glob("*/seed-*"):
            checkpoint = runs.best_checkpoint(run)
            facts = {"temperature": 1.7, "nll": {"before": 0.3, "held_out": held_out}}
            keep_temperature(run, facts | {"checkpoint_sha256": sha256(checkpoint)})
        assert main(["best", "mine", FEW, "--device", "cpu"]) == 0
        assert f"so it is {said}" in capsys.readouterr().out
        words = json.loads((study / "best.json").read_text())["words"]
        assert f"evaluation.temperature={'fitted' if said == 'applied' else 1}" in words


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "name one study"),
        (["mine", "other"], "name one study"),
        (["mien"], "there is no study mien"),
        (["mine", "evaluation.et_minimum=5"], "bts best chooses that itself"),
        (["mine", "evaluation.et_minimun=5"], "did you mean evaluation.et_minimum?"),
        (["mine", "--device", "abacus"], "--device abacus is not here"),
    ],
)
def test_wrong_words_are_one_line(
    words: list[str], line: str, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["best", *words, *([PLAIN] if words else [])]) == 2
    (printed,) = capsys.readouterr().err.strip().splitlines()
    assert line in printed


def test_only_what_all_experiments_have_finished_is_chosen_from(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (study / "b/seed-1/trained.txt").unlink()
    assert main(["best", "mine", FEW, PLAIN, "--device", "cpu"]) == 0
    assert "seed-1" not in (study / "best.json").read_text()
    split = Split.load(study / "a/seed-0/split.json")
    replace(split, val=split.val[:1]).save(study / "b/seed-0/split.json")
    assert main(["best", "mine", FEW, PLAIN, "--device", "cpu"]) == 2
    assert "was validated on other cases" in capsys.readouterr().err
    shutil.rmtree(study / "b/seed-0")
    assert main(["best", "mine", FEW, PLAIN, "--device", "cpu"]) == 2
    assert "no seed and fold in common" in capsys.readouterr().err


@pytest.mark.slow
def test_a_study_with_folds_chooses_by_what_each_fold_validated(
    phantom: Path, tmp_path: Path
) -> None:
    tiny = "net.width=4 net.poolings=2 data.patch=32 data.steps_per_epoch=20 trainer.max_epochs=2"
    tiny += " trainer.accelerator=cpu callbacks.overlays=null callbacks.subsets=null"
    tiny += f" callbacks.best=null trainer.limit_val_batches=0 {FEW} data.root={phantom}"
    both = "'unet_small smoke' 'unet_small smoke task.optimizer.lr=1e-3'"
    words = [both, *tiny.split(), "--seeds", "1", "--folds", "3", "--name", "folds"]
    bts("study", *words, folder=tmp_path)
    bts("best", "folds", "--device", "cpu", folder=tmp_path)
    folder = tmp_path / "studies/folds"
    cases = [file.stem for file in folder.glob("best/fold-*/*.json")]
    assert len(cases) == len(set(cases)) == 8
    told = json.loads((folder / "best.json").read_text())
    assert len(told["runs"]) in (3, 6)
    assert all((tmp_path / run / "temperature.json").is_file() for run in told["runs"])
    page = (folder / "best.md").read_text()
    assert "data.root=DATA" in page
    # The folds together have seen every case.
    evaluated = ["evaluate", *told["runs"], *told["words"]]
    printed = bts(*evaluated, folder=tmp_path, code=2)
    assert "have trained or chosen" in printed
    row = next(line for line in page.splitlines() if line.endswith("| chosen |"))
    assert np.isfinite(float(row.split("|")[-3]))
