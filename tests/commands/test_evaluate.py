"""Evaluation of a run: the table, its continuation, and everything that can be wrong."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from bts_lightning.__main__ import main
from bts_lightning.commands.compare import compare
from bts_lightning.commands.evaluate import evaluate
from bts_lightning.data.phantom.write import write_phantom
from bts_lightning.errors import UserError
from bts_lightning.modalities import MODALITIES, parse_subset
from bts_lightning.report.write import write_report
from bts_lightning.runs.checkpoints import read_checkpoint
from tests.tiny_training import TINY, the_run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Give a copy of the run that a test may spoil."""
    return Path(shutil.copytree(trained, tmp_path / "runs" / "uhemis" / "1"))


def table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "cases.csv")


def split_into(folder: Path, root: Path, *, train: list[str], test: list[str]) -> list[str]:
    """Give the overrides that evaluate another data set with these lists."""
    for part, names in {"train": train, "val": [], "test": test}.items():
        (folder / f"{part}.txt").write_text("\n".join(names))
    lists = ", ".join(f"{part}: {folder / part}.txt" for part in ("train", "val", "test"))
    return [f"data.root={root}", f"data.split={{{lists}}}"]


def test_every_case_subset_and_region_has_one_row(run: Path) -> None:
    folder = evaluate(run, device="cpu")
    rows = table(folder)
    split = json.loads((run / "split.json").read_text())
    assert sorted(rows.case.unique()) == sorted(split["test"])
    assert len(rows) == len(split["test"]) * 15 * 3
    assert not rows.duplicated(["case", "subset", "region"]).any()
    for name in ("summary.md", "summary.tex", "report.html", "protocol.json"):
        assert (folder / name).stat().st_size > 0


def test_one_pass_gives_the_table_of_fifteen(run: Path) -> None:
    once = table(evaluate(run, device="cpu"))
    naive = table(evaluate(run, device="cpu", name="naive", words=["evaluation.naive=true"]))
    pd.testing.assert_frame_equal(once, naive, rtol=0, atol=1e-6)


def test_a_finished_case_is_not_done_again(run: Path) -> None:
    folder = evaluate(run, device="cpu")
    before = {file: file.stat().st_mtime_ns for file in (folder / "rows").iterdir()}
    expected = (folder / "cases.csv").read_bytes()
    dropped = next(iter(before))
    dropped.unlink()
    (folder / "cases.csv").unlink()
    evaluate(run, device="cpu")
    after = {file: file.stat().st_mtime_ns for file in (folder / "rows").iterdir()}
    assert [file for file in before if after[file] != before[file]] == [dropped]
    assert (folder / "cases.csv").read_bytes() == expected


def test_damaged_rows_are_scored_again(run: Path) -> None:
    folder = evaluate(run, device="cpu", words=["evaluation.subsets=[flair,t2]"])
    expected = (folder / "cases.csv").read_bytes()
    (file, *_) = sorted((folder / "rows").iterdir())
    whole = file.read_bytes()
    # A case scored in part would give a report that looks whole.
    for damaged in (
        b"",
        whole[:-40],
        whole.replace(b",ET,1", b",ET,0"),
        whole.rpartition(b"\nB")[0],
    ):
        file.write_bytes(damaged)
        evaluate(run, device="cpu", words=["evaluation.subsets=[flair,t2]"])
        assert file.read_bytes() == whole
        assert (folder / "cases.csv").read_bytes() == expected


def test_a_damaged_protocol_is_written_again_and_refused_elsewhere(run: Path) -> None:
    words = ["evaluation.subsets=[flair]"]
    folder = evaluate(run, device="cpu", words=words)
    file = folder / "protocol.json"
    whole = file.read_bytes()
    for damaged in (
        b"",
        whole[:-40],
        b"[1]",
        whole.replace(b'"network"', b'"networl"'),
        b"\xff\x00",
    ):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"protocol\.json.*evaluate again"):
            write_report(folder)
        rows = {row: row.stat().st_mtime_ns for row in (folder / "rows").iterdir()}
        evaluate(run, device="cpu", words=words)
        # The rows say by themselves how they were made, so none is made again.
        assert rows == {row: row.stat().st_mtime_ns for row in (folder / "rows").iterdir()}
        write_report(folder)
    file.write_bytes(b"")
    expected = evaluate(run, device="cpu", name="other", words=["evaluation.subsets=[t1]"])
    evaluate(run, device="cpu", words=["evaluation.subsets=[t1]"])
    assert (folder / "cases.csv").read_bytes() == (expected / "cases.csv").read_bytes()


def test_a_table_that_was_changed_is_not_reported(run: Path) -> None:
    folder = evaluate(run, device="cpu", words=["evaluation.subsets=[flair]"])
    text = (folder / "cases.csv").read_text()
    (folder / "cases.csv").write_text(text.rpartition("\nBraTS")[0])
    with pytest.raises(UserError, match=r"cases\.csv: damaged, or changed by hand"):
        write_report(folder)
    evaluate(run, device="cpu", words=["evaluation.subsets=[flair]"])
    assert (folder / "cases.csv").read_text() == text


def test_a_run_that_does_not_say_how_it_is_evaluated_is_refused(run: Path) -> None:
    words = ["evaluation=null", "callbacks.subsets=null", "callbacks.overlays=null"]
    with pytest.raises(UserError, match="evaluation is null"):
        evaluate(run, device="cpu", words=words)


def test_an_option_taken_back_makes_another_protocol(run: Path) -> None:
    words = ["evaluation.subsets=[flair]"]
    evaluate(run, device="cpu", words=[*words, "evaluation.et_minimum=5"])
    with pytest.raises(UserError, match="another et_minimum, et_small"):
        evaluate(run, device="cpu", words=words)


def test_rows_of_two_protocols_never_share_a_table(run: Path) -> None:
    evaluate(run, device="cpu")
    with pytest.raises(UserError, match=r"another hd95; give this one a name"):
        evaluate(run, device="cpu", words=["evaluation.hd95=directed"])
    # Finished rows of the one pass would pass for a proof.
    with pytest.raises(UserError, match=r"another naive; give this one a name"):
        evaluate(run, device="cpu", words=["evaluation.naive=true"])


def test_lesions_are_scored_where_the_protocol_says_so(run: Path) -> None:
    words = ["evaluation.lesions=brats2023", "evaluation.subsets=[t1c+flair, t2]"]
    folder = evaluate(run, device="cpu", words=words)
    rows, lesions = table(folder), pd.read_csv(folder / "lesions.csv")
    counted = lesions[lesions.counts == 1].groupby(["case", "subset", "region"])
    there = rows.set_index(["case", "subset", "region"])
    assert there["lesions"].sum() > 0
    for column, expected in (("lesions", counted.size()), ("found", counted.found.sum())):
        pd.testing.assert_series_equal(
            there[column][there["lesions"] > 0].astype(int).sort_index(),
            expected.astype(int).sort_index(),
            check_names=False,
        )
    text = (folder / "report.html").read_text()
    assert 'id="lesions"' in text
    assert "“brats2023”, task “gli”" in text
    assert "Lesion-wise Dice" in (folder / "summary.md").read_text()
    with pytest.raises(UserError, match="another lesion_task, lesions"):
        evaluate(run, device="cpu", words=["evaluation.subsets=[t1c+flair, t2]"])
    # Two policies never stand in one column; what both tables have can still be compared.
    other = ["evaluation.lesions=brats2025", words[1]]
    with pytest.raises(UserError, match="different policies for lesions"):
        compare([folder, evaluate(run, device="cpu", name="2025", words=other)])
    compare([folder, evaluate(run, device="cpu", name="plain", words=words[1:])])
    told = (folder / "lesions.csv").read_text()
    (folder / "lesions.csv").write_text(told.rpartition("\nBraTS")[0])
    with pytest.raises(UserError, match=r"lesions\.csv: damaged, or changed by hand"):
        write_report(folder)


def test_calibration_is_measured_where_the_protocol_says_so(run: Path) -> None:
    words = ["evaluation.calibration=true", "evaluation.subsets=[t1c+flair, t2]"]
    folder = evaluate(run, device="cpu", words=words)
    rows, bins = table(folder), pd.read_csv(folder / "calibration.csv")
    keys = ["case", "subset", "region"]
    bins["gap"] = (bins.probability - bins.truth).abs()
    for area, column in (("all", "ece"), ("band", "ece_band")):
        sums = bins[bins.area == area].groupby(keys)[["gap", "voxels"]].sum()
        expected = (sums.gap / sums.voxels).sort_index()
        got = rows.set_index(keys)[column].dropna().sort_index()
        pd.testing.assert_series_equal(got, expected, check_names=False, rtol=1e-12)
    assert rows.brier.between(0, 1).all()
    text = (folder / "report.html").read_text()
    assert 'id="calibration"' in text
    assert "at most 5.0 mm from the surface" in text
    assert "Area under risk and coverage" in (folder / "summary.md").read_text()
    naive = evaluate(run, device="cpu", name="naive", words=[*words, "evaluation.naive=true"])
    pd.testing.assert_frame_equal(rows, table(naive), rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="another calibration, calibration_band"):
        evaluate(run, device="cpu", words=words[1:])
    # The other columns are those of an evaluation without it.
    plain = evaluate(run, device="cpu", name="plain", words=words[1:])
    pd.testing.assert_frame_equal(rows[table(plain).columns], table(plain))
    compare([folder, plain])
    with pytest.raises(UserError, match=r"without ece; .* evaluation\.calibration=true"):
        compare([folder, plain], metrics=["ece"])


def test_a_network_without_weights_is_not_asked_for_them(run: Path) -> None:
    words = ["evaluation.subsets=[t1c+flair, t2]"]
    folder = evaluate(run, device="cpu", words=[*words, "evaluation.importance=true"])
    assert (folder / "importance.csv").read_text() == (
        "case,subset,region,kind,level,expert,t1,t1c,t2,flair\n"
    )
    assert "UHeMIS does not weigh its modalities" in (folder / "report.html").read_text()
    plain = evaluate(run, device="cpu", name="plain", words=words)
    pd.testing.assert_frame_equal(table(folder), table(plain))


@pytest.mark.slow
def test_attention_is_written_down_for_each_case_subset_and_region(
    phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *TINY, f"data.root={phantom}", "evaluation.subsets=null"]) == 0
    words = ["evaluation.importance=true", "evaluation.overlap=0.5"]
    folder = evaluate(the_run(), device="cpu", words=words)
    told, rows = pd.read_csv(folder / "importance.csv"), table(folder)
    keys = ["case", "subset", "region"]
    pd.testing.assert_frame_equal(told[keys], rows[keys])
    present = np.array([parse_subset(name) for name in told.subset])
    weights = told[list(MODALITIES)].to_numpy()
    is_there = rows.true_ml.to_numpy() > 0
    assert (weights[is_there][~present[is_there]] == 0).all()
    np.testing.assert_allclose(weights[is_there].sum(axis=1), 1, atol=3e-6)
    assert np.isnan(weights[~is_there]).all()
    assert "What the network weighs" in (folder / "report.html").read_text()
    # Whoever takes away its rows gets them again, the same.
    before = (folder / "importance.csv").read_bytes()
    next((folder / "importance").iterdir()).unlink()
    (folder / "cases.csv").unlink()
    evaluate(the_run(), device="cpu", words=words)
    assert (folder / "importance.csv").read_bytes() == before
    naive = evaluate(the_run(), device="cpu", name="naive", words=[*words, "evaluation.naive=true"])
    again = pd.read_csv(naive / "importance.csv")
    pd.testing.assert_frame_equal(told, again, rtol=0, atol=1e-5)


def test_a_temperature_is_fitted_on_validation_cases_and_kept_with_the_run(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluation.subsets=[t1c+flair]", "evaluation.temperature=fitted"]
    for part in ([], ["--part", "test"], ["--part", "train"]):
        assert main(["evaluate", str(run), "--fit-temperature", *part]) == 2
        assert "give --part val" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"temperature\.json: no such file; .*--fit-temperature"):
        evaluate(run, device="cpu", words=words)
    assert main(["evaluate", str(run), "--fit-temperature", "--part", "val", *words]) == 0
    kept = json.loads((run / "temperature.json").read_text())
    assert kept["part"] == "val"
    assert kept["nll"]["after"] <= kept["nll"]["before"]
    assert f"temperature {kept['temperature']:.4f}" in capsys.readouterr().out
    folder = evaluate(run, device="cpu", words=words)
    facts = json.loads((folder / "protocol.json").read_text())
    assert facts["temperature"] == kept["temperature"]
    with pytest.raises(UserError, match="another temperature"):
        evaluate(run, device="cpu", words=words[:1])
    # Another checkpoint has another one.
    (file,) = (run / "checkpoints").glob("*.ckpt")
    torch.save(read_checkpoint(file) | {"epoch": 7}, run / "checkpoints" / "best.ckpt")
    with pytest.raises(UserError, match=r"fitted to another checkpoint than .*best\.ckpt"):
        evaluate(run, device="cpu", words=words)
    edited = json.dumps(kept | {"temperature": 1.5})
    for damaged in ("", "[]", "{}", '{"temperature": 1.5}', edited):
        (run / "temperature.json").write_text(damaged)
        with pytest.raises(UserError, match="holds no temperature"):
            evaluate(run, device="cpu", words=words)


def test_an_evaluation_goes_on_from_wherever_the_run_is_named(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["evaluation.subsets=[flair]"]
    folder = evaluate(run, device="cpu", words=words)
    monkeypatch.chdir(run)
    evaluate(Path(), device="cpu", words=words)
    assert json.loads((folder / "protocol.json").read_text())["experiment"] == "uhemis"
    monkeypatch.chdir(run.parent.parent)
    evaluate(Path(shutil.move(run, "moved")), device="cpu", words=words)


def test_splits_of_one_name_that_differ_in_training_alone_are_told_apart(
    run: Path, phantom: Path, tmp_path: Path
) -> None:
    names = sorted(path.name for path in phantom.glob("BraTS*"))
    folders = []
    for count in (2, 3):
        split = split_into(tmp_path, phantom, train=names[1 : 1 + count], test=names[:1])
        # It was trained on others, and its own split would refuse to be mixed up.
        (run / "split.json").unlink(missing_ok=True)
        words = [*split, "evaluation.subsets=[flair]"]
        folders.append(evaluate(run, device="cpu", name=str(count), words=words))
    first, second = (json.loads((f / "protocol.json").read_text()) for f in folders)
    assert first["split"]["name"] == second["split"]["name"]
    assert first["data_fingerprint"] == second["data_fingerprint"]
    with pytest.raises(UserError, match="different splits"):
        compare(folders)


def test_a_run_without_checkpoint_is_named(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match="has no checkpoint"):
        evaluate(run, device="cpu")


def test_a_truncated_checkpoint_is_named(run: Path) -> None:
    (file,) = (run / "checkpoints").glob("*.ckpt")
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(UserError, match=rf"{file.name} cannot be read"):
        evaluate(run, device="cpu")


def test_predictions_lie_on_the_grid_of_the_files(run: Path, phantom: Path) -> None:
    folder = evaluate(run, device="cpu", predictions=True, words=["evaluation.subsets=[flair]"])
    case = table(folder).case.iloc[0]
    written = nib.load(folder / "predictions" / "flair" / f"{case}.nii.gz")
    truth = nib.load(phantom / case / f"{case}_seg.nii.gz")
    assert written.shape == truth.shape
    np.testing.assert_array_equal(written.affine, truth.affine)
    assert set(np.unique(written.dataobj)) <= {0, 1, 2, 4}


def test_predictions_may_be_asked_for_when_all_is_scored(run: Path) -> None:
    words = ["evaluation.subsets=[flair,t2]"]
    folder = evaluate(run, device="cpu", words=words)
    expected = (folder / "cases.csv").read_bytes()
    evaluate(run, device="cpu", words=words, predictions=True)
    cases = len(table(folder).case.unique())
    assert len(list((folder / "predictions").glob("*/*.nii.gz"))) == 2 * cases
    assert (folder / "cases.csv").read_bytes() == expected


def test_a_part_without_cases_is_named(run: Path, phantom: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in phantom.glob("BraTS*"))
    (run / "split.json").unlink()
    words = split_into(tmp_path, phantom, train=names[:1], test=names[1:])
    with pytest.raises(UserError, match="the val part of split train, val, test has no case"):
        evaluate(run, device="cpu", words=words, part="val")


def test_a_case_without_label_is_segmented_and_said_not_to_be_scored(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_phantom(tmp_path / "data", cases=3, seed=1, size=(32, 32, 32), workers=1)
    names = sorted(path.name for path in root.glob("BraTS*"))
    (root / names[2] / f"{names[2]}_seg.nii.gz").unlink()
    words = split_into(tmp_path, root, train=names[:1], test=names[1:])
    folder = evaluate(run, device="cpu", words=words)
    assert list(table(folder).case.unique()) == [names[1]]
    printed = " ".join(capsys.readouterr().out.split())
    assert f"not scored, because there is no label: {names[2]}" in printed
    assert len(list((folder / "predictions").glob(f"*/{names[2]}.nii.gz"))) == 15


def test_a_tumour_of_one_voxel_and_none_at_all_are_scored(run: Path, tmp_path: Path) -> None:
    root = write_phantom(tmp_path / "data", cases=3, seed=2, size=(32, 32, 32), workers=1)
    for index, voxels in enumerate(([(16, 16, 16)], [])):
        file = root / f"BraTS2021_{index:05d}" / f"BraTS2021_{index:05d}_seg.nii.gz"
        image = nib.load(file)
        label = np.zeros(image.shape, np.uint8)
        for voxel in voxels:
            label[voxel] = 4
        nib.save(nib.Nifti1Image(label, image.affine), file)
    names = [f"BraTS2021_{index:05d}" for index in range(3)]
    words = split_into(tmp_path, root, train=names[2:], test=names[:2])
    rows = table(evaluate(run, device="cpu", words=words))
    assert len(rows) == 2 * 15 * 3
    assert rows.dice.notna().all()
    empty = rows[rows.case == "BraTS2021_00001"]
    found = empty.predicted_ml > 0
    assert (empty.dice[found] == 0).all()
    assert (empty.hd95[found] == 373.12866).all()
    assert (empty.dice[~found] == 1).all()


def test_a_window_larger_than_the_case_is_padded(run: Path) -> None:
    rows = table(evaluate(run, device="cpu", words=["evaluation.window=64"]))
    assert rows.dice.notna().all()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nowhere"], "no run below"),
        ([], "name a run"),
        (["--part", "tset"], "there is no 'tset'; did you mean test?"),
        (["--name", "../elsewhere"], "--name '../elsewhere': give the name of a folder in"),
        (["--fit-temperature", "--name", "x"], "scores nothing: leave --name and --predictions"),
        (["--device", "cpu:1"], "--device cpu:1 is not here; choose cpu"),
        (["--device", "abacus"], "--device abacus is not here; choose cpu"),
        (["evaluation.overlap=2"], "overlap=2"),
        (["evaluation.subsets=[t1ce]"], "unknown modality 't1ce'"),
    ],
)
def test_a_wrong_command_is_one_line(
    words: list[str], line: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = words[:1] == ["nowhere"] or not words
    assert main(["evaluate", *([] if named else [str(run)]), *words]) == 2
    printed = capsys.readouterr().err.strip()
    assert line in printed
    assert len(printed.splitlines()) == 1


def test_the_best_checkpoint_is_the_one_that_is_scored(run: Path) -> None:
    (file,) = (run / "checkpoints").glob("*.ckpt")
    content = read_checkpoint(file)
    content["state_dict"] = {k: torch.zeros_like(v) for k, v in content["state_dict"].items()}
    torch.save(content, run / "checkpoints" / "best.ckpt")
    folder = evaluate(run, device="cpu")
    assert json.loads((folder / "protocol.json").read_text())["checkpoint"] == "best.ckpt"
    # Zero weights say 0.5 everywhere or the background everywhere: nothing is found.
    assert (table(folder).predicted_ml == 0).all()


def test_the_table_joins_the_wandb_run_of_the_training(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    words = ["logger.wandb._target_=bts_lightning.loggers.Wandb", "evaluation.subsets=[flair]"]
    folder = evaluate(run, device="cpu", words=words)
    (sent,) = (run / "logs").glob("wandb/offline-run-*/files/media/table/evaluation/*.table.json")
    assert len(json.loads(sent.read_text())["data"]) == len(table(folder))


def test_brasyn_scores_each_case_without_one_modality(run: Path) -> None:
    folder = evaluate(run, words=["evaluation.draw=brasyn"], name="brasyn", device="cpu")
    rows = table(folder)
    assert (rows.groupby("case").subset.nunique() == 1).all()
    assert (rows.subset.str.count(r"\+") == 2).all()
    summary = (folder / "summary.md").read_text()
    mean = 100 * rows[rows.region == "WT"].dice.mean()
    assert f"The mean over all cases: Dice (%) WT {mean:.2f}, TC" in summary
    assert "acquired without" not in summary
