"""Labels that mean other things than a glioma's: from the files to the report, and back."""

import csv
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bts_lightning.__main__ import main
from bts_lightning.data.cache.prepare import prepare
from bts_lightning.data.phantom.write import case_files, write_phantom
from bts_lightning.modalities import SCHEMES
from tests.tiny_training import TINY, the_run, train

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")
CASES = 8


@pytest.fixture(scope="module")
def after_surgery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("after")
    return write_phantom(out, CASES, 0, (48, 48, 40), cavities=True)


def listed(phantom: Path, out: Path, scheme: str) -> Path:
    """List the phantom's files with labels that are numbered as the scheme's data set does it."""
    rows = []
    for index in range(CASES):
        images, label = case_files(phantom, index)
        row = {"case": f"case{index}", "t1c": images["t1c"], "label": label, "labels": scheme}
        if scheme == "men_rt":
            found = nib.Nifti1Image.from_filename(label)
            row["label"] = out / f"{index}.nii.gz"
            core = np.isin(found.dataobj, (1, 4)).astype(np.uint8)
            nib.Nifti1Image(core, found.affine).to_filename(row["label"])
        else:
            row |= {m: images[m] for m in ("t1", "t2", "flair")}
        rows.append(row)
    with (out / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "lesions"), [("cavity", "gli"), ("ped", "ped"), ("men_rt", "men_rt")]
)
def test_every_region_is_trained_scored_reported_and_written_back(
    scheme: str, lesions: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if scheme == "cavity":
        data: Path = request.getfixturevalue("after_surgery")
    else:
        data = listed(request.getfixturevalue("phantom"), tmp_path, scheme)
    regions = SCHEMES[scheme].regions
    words = [*TINY, scheme, f"net.out_channels={len(regions)}", f"data.root={data}"]
    words += ["trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1"]
    words += ["evaluation.subsets=null", "evaluation.calibration=true"]
    words += ["evaluation.importance=true"]
    assert train(*words, "evaluation.lesions=brats2024", f"evaluation.lesion_task={lesions}") == 0
    run = the_run()
    assert main(["evaluate", str(run), "--device", "cpu", "--predictions"]) == 0
    folder = run / "evaluation" / "test"
    table = pd.read_csv(folder / "cases.csv")
    assert list(table["region"][: len(regions)]) == list(regions)
    stored = {c.name: c for c in prepare(data, scheme=scheme)}
    for (case, region), rows in table.groupby(["case", "region"]):
        inside = np.isin(np.asarray(stored[str(case)].label), regions[str(region)])
        ml = inside.sum() * np.prod(stored[str(case)].geometry.spacing) / 1000
        assert rows["true_ml"].to_numpy() == pytest.approx(ml, abs=1e-3)
    assert {"lesion_dice", "ece"} <= set(table.columns)
    told = pd.read_csv(folder / "importance.csv")
    assert list(told["region"][: len(regions)]) == list(regions)
    page = (folder / "report.html").read_text()
    assert 'id="weights"' in page
    assert all(f"<h3>{region} " in page for region in regions)
    # What is written has the numbers of the files that it is compared with.
    allowed = set(next(iter(stored.values())).geometry.file_values.values())
    for file in (folder / "predictions").rglob("*.nii.gz"):
        assert set(np.unique(nib.Nifti1Image.from_filename(file).dataobj)) <= allowed
    again = shutil.copytree(folder, run / "evaluation" / "again")
    assert main(["compare", str(folder), str(again)]) == 0


def test_what_does_not_fit_together_is_one_line(
    phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    children = listed(phantom, tmp_path, "ped")
    for words, line in {
        ("cavity",): "net.out_channels=3, but RegionLoss reads 4 channels",
        ("data.scheme=cavity",): "data.scheme=cavity and task.loss.scheme=brats tell other",
        ("data.scheme=cavety",): "did you mean cavity?",
        ("task.loss.scheme=peds",): "did you mean ped?",
        (f"data.root={children}",): "set data.scheme=ped",
        ("cavity", "net.out_channels=4", "evaluation.lesions=brats2023"): "brats2024 with gli",
    }.items():
        mix_ins = [word for word in words if "=" not in word]
        others = [word for word in words if "=" in word]
        channels = [] if "net.out_channels=4" in others else ["net.out_channels=3"]
        given = [*TINY, *mix_ins, f"data.root={phantom}", *channels, *others]
        assert train(*given) == 2
        assert line in capsys.readouterr().err
    assert main(["prepare", str(children)]) == 2
    printed = capsys.readouterr().err
    assert "labels of manifest know cyst" in printed
    assert len(printed.strip().splitlines()) == 1
