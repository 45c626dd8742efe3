"""What a study has reproduced: the file to send, and the page that such files fill."""

import json
from pathlib import Path

import pandas as pd
import pytest

from bts_lightning.__main__ import main
from bts_lightning.errors import UserError
from bts_lightning.study.record import record
from tests.networks import status
from tests.report.synthetic import protocol, rows

WORDS = ["task.optimizer.lr=0.1", "data.root=/home/somebody/data"]


def evaluate(run: Path, dice: float, prefix: str, network: str = "RFNet") -> None:
    """Make a run that was trained on two processes and evaluated: every cell has this Dice."""
    folder = run / "evaluation" / "test"
    folder.mkdir(parents=True)
    (run / "logs").mkdir()
    (run / "trained.txt").write_text("")
    (run / "config.yaml").write_text("data: {batch_size: 2}")
    made = pd.DataFrame(rows(3, prefix=prefix)).assign(dice=dice)
    made.to_csv(folder / "cases.csv", index=False)
    (folder / "protocol.json").write_text(json.dumps(protocol(network=network)))
    machine = {"gpus": ["Card"], "cpus": 8}
    facts = {"commit": "abcdef0123456789", "versions": {}, "machine": machine, "processes": 2}
    (run / "provenance.json").write_text(json.dumps(facts))
    # 40 steps of 2 × 2 patches: 20 at 1 patch/s, 20 at 2 patches/s.
    speed = [(19, 1.0), (39, 2.0)]
    lines = [f"{step},speed/patches_per_second,{rate}" for step, rate in speed]
    (run / "logs" / "metrics.csv").write_text("\n".join(["step,metric,value", *lines, ""]))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "studies" / "rfnet"
    for seed, dice in enumerate((0.8, 0.84)):
        evaluate(folder / "rfnet" / f"seed-{seed}", dice, "BraTS20_Training_")
    (folder / "study.yaml").write_text(json.dumps({"overrides": WORDS, "folds": None}))
    return folder


SOURCE = "dyh127/RFNet@1e475fa:README.md"


def test_a_record_holds_ours_beside_one_printed_number(study: Path) -> None:
    told = json.loads(record(study, source=SOURCE, by="somebody").read_text())
    assert told["ours"]["ET"] == [82.0, 2.83]
    assert told["paper"]["ET"] == 61.47
    assert told["paper"]["split"] == "RFNet list 219/50/100"
    assert told["gap"]["ET"] == 20.53
    assert told["hours_a_training"] == round((80 / 1 + 80 / 2) / 3600, 2)
    assert (told["hardware"], told["commit"]) == ("2 × Card", "abcdef0123456789")
    assert (told["data"], told["seeds"], told["test_cases"]) == ("BraTS2020", [0, 1], 3)
    # What is sent names no folder.
    assert told["overrides"] == ["task.optimizer.lr=0.1"]
    assert "somebody/data" not in json.dumps(told)


def test_two_sources_are_never_pooled(study: Path) -> None:
    with pytest.raises(UserError, match=r"say with --source .*m3ae@.*RFNet@"):
        record(study)


def test_a_seed_is_the_mean_of_its_folds(tmp_path: Path) -> None:
    for name, dice in (("seed-0_fold-1", 0.6), ("seed-0_fold-2", 0.8), ("seed-1_fold-1", 0.9)):
        evaluate(tmp_path / "rfnet" / name, dice, f"patient_{name}_")
    told = json.loads(record(tmp_path).read_text())
    assert told["ours"]["WT"] == [80.0, 14.14]
    assert told["paper"] is None
    assert (told["data"], told["folds"]) == ("unknown", 2)


def test_mistakes_are_one_line(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(study / "unet" / "seed-0", 0.5, "BraTS20_Training_", "UNet")
    for words, expected in (
        ([str(study)], "holds rfnet, unet; say which one with --experiment"),
        ([str(study), "--experiment", "rfnt"], "did you mean rfnet?"),
        ([str(tmp_path)], "holds no evaluated training of a study"),
        ([str(study), "--experiment", "unet", "--method", "RFNett"], "did you mean RFNet?"),
        ([str(study), "--experiment", "unet", "--dataset", "brats202"], "no published dataset"),
        ([str(study), "--official"], "--official goes with one run"),
        ([str(study / "rfnet" / "seed-0")], "--official goes with one run"),
    ):
        assert main(["record", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert expected in line
    (study / "rfnet" / "seed-1" / "trained.txt").unlink()
    assert main(["record", str(study), "--experiment", "rfnet"]) == 2
    assert "not every training is evaluated" in capsys.readouterr().err


def test_a_record_fills_its_row_of_the_page(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["record", str(study), "--source", SOURCE, "--by", "a|b"]) == 0
    assert "ET  82.00 ± 2.83, paper 61.47, gap +20.53" in capsys.readouterr().out
    folder = tmp_path / "status"
    folder.mkdir()
    (study / "record-rfnet.json").rename(folder / "rfnet.json")
    page = status.page(folder)
    (line,) = (row for row in page.splitlines() if row.startswith("| RFNet | BraTS2020"))
    assert "2 × Card, 0.03 h" in line
    assert "82.00 ± 2.83 / 82.00 ± 2.83 / 82.00 ± 2.83" in line
    assert "-4.98 / +3.77 / +20.53" in line
    assert line.endswith("| abcdef012 | a/b |")
    assert "| RFNet | not trained" not in page
    assert "| mmFormer | not trained" in page


def test_official_weights_fill_another_column(study: Path, tmp_path: Path) -> None:
    run = study / "rfnet" / "seed-0"
    (run / "provenance.json").unlink()
    file = record(run, source=SOURCE, by="somebody", official=True)
    folder = tmp_path / "status"
    folder.mkdir()
    file.rename(folder / "rfnet.json")
    page = status.page(folder)
    assert "yes, by somebody, BraTS2020" in page
    assert "| RFNet | not trained" in page
