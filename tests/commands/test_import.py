"""`bts import`: a run of an official checkpoint, and one line for every other file."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bts_lightning import config
from bts_lightning.__main__ import main
from bts_lightning.data.splits import Split
from bts_lightning.networks.official.state import learned
from bts_lightning.networks.official.table import read_table
from bts_lightning.runs.opening import load_run, load_task

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")
SMALL = ["net.width=4", "data.patch=16", "evaluation.window=32"]


def official() -> dict[str, Tensor]:
    """Give the state of a narrow RFNet as its program saves it."""
    with torch.device("meta"):
        net = config.build(config.load(["rfnet", "net.width=4"]).net)
    torch.manual_seed(0)
    return {
        f"module.{place.name}": torch.randn(place.shape(net.get_parameter(name).shape))
        for name, place in read_table("rfnet").places(dict(net.named_parameters())).items()
    }


def saved(file: Path, *, old: bool = False, **more: Any) -> Path:
    state = {"epoch": 3, "state_dict": official(), "optim_dict": {"state": {}}} | more
    torch.save(state, file, _use_new_zipfile_serialization=not old)
    return file


def refused(file: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["import", "rfnet", str(file), *SMALL, *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert not Path("runs").exists()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("old", [False, True])
def test_a_run_holds_the_official_weights_and_protocol(
    old: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    file = saved(Path("model.pth"), old=old, best=np.float64(0.5), dices=[np.float32(1)])
    assert main(["import", "rfnet", str(file), *SMALL, "--out", "run"]) == 0
    said = capsys.readouterr().out
    assert "taken 288 parameters" in said
    assert "skipped 0 without effect (0), refused 0" in said
    assert "channels: FLAIR, T1c, T1, T2 officially, T1, T1c, T2, FLAIR here" in said
    run = Path("run")
    read = load_run(run)
    assert read.data.normalisation == "legacy_rfnet"
    assert (read.evaluation.windows, read.evaluation.overlap) == ("stepped", 0.5)
    net = load_task(read, run / "checkpoints" / "best.ckpt").net
    state = official()
    torch.testing.assert_close(
        net.state_dict()["encoders.3.down.0.0.weight"],
        state["module.flair_encoder.e1_c1.conv.weight"],
    )
    facts = json.loads((run / "provenance.json").read_text())["imported"]
    assert facts["parameters"] == {
        "taken": [288, facts["parameters"]["taken"][1]],
        "skipped": [0, 0],
        "refused": 0,
    }
    assert main(["import", "rfnet", str(file), "--out", "run"]) == 2  # never over another one


def test_statistics_of_batches_come_along(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["net.width=4", "data.patch=16", "evaluation.window=16"]
    with torch.device("meta"):
        ours = learned(config.build(config.load(["unimrseg", *words]).net))
    places = read_table("unimrseg").places(ours)
    state = {
        place.name: torch.rand(place.shape(ours[name].shape)) for name, place in places.items()
    }
    torch.save({"state_dict": state | {"aspp.bn.num_batches_tracked": torch.tensor(7)}}, "model.pt")
    assert main(["import", "unimrseg", "model.pt", *words, "--out", "run"]) == 0
    said = capsys.readouterr().out
    assert "taken 202 parameters" in said
    assert "skipped 1 without effect (1), refused 0" in said
    net = load_task(load_run(Path("run")), Path("run/checkpoints/best.ckpt")).net
    theirs = state["down1.maxpool_conv.1.double_conv.4.running_var"]
    torch.testing.assert_close(net.state_dict()["stages.1.4.running_var"], theirs)


class Harm:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return Path.touch, (Path("harmed"),)  # type: ignore[return-value]


@pytest.mark.parametrize("old", [False, True])
def test_code_is_named_and_not_run(old: bool, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(saved(Path("a.pth"), old=old, model=Harm()), capsys)
    assert "no number, so nothing in it was run; save the state alone" in said
    assert not Path("harmed").exists()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (
            "module.decoder_fuse.seg_layer.bias",
            torch.zeros(5),
            "decoder_fuse.seg_layer.bias: 5 for 4",
        ),
        ("module.decoder_fuse.seg_layer.bias", None, "1 of 288 parameters are missing"),
        (
            "module.decoder_fuse.seg_layer.bias",
            torch.full((4,), torch.nan),
            "4 values that are NaN",
        ),
        ("module.decoder_fuse.seg_layer.bias", torch.zeros(4).long(), "holds int64 and no floats"),
        ("module.decoder_fuse.seg_layer.bias", [0.0], "is a list without numbers"),
        (
            "module.decoder_fuse.seg_layer.bias",
            torch.zeros(1).expand(10**13),
            "10000000000000 for 4",
        ),
        ("another.weight", torch.zeros(1), "1 are unknown"),
        (7, torch.zeros(1), "7 is no name"),
    ],
)
def test_a_state_that_does_not_fit_is_one_line(
    name: Any, value: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    state: dict[Any, Any] = official() | {name: value}
    state = {key: held for key, held in state.items() if held is not None}
    assert said in refused(saved(Path("a.pth"), state_dict=state), capsys)


@pytest.mark.parametrize("old", [False, True])
def test_a_tensor_may_say_any_size(old: bool, capsys: pytest.CaptureFixture[str]) -> None:
    state = official() | {"module.decoder_fuse.seg_layer.bias": torch.zeros(251)}
    file = saved(Path("a.pth"), old=old, state_dict=state)
    huge = b"\x8a\x06" + (10**13).to_bytes(6, "little")
    if old:
        file.write_bytes(file.read_bytes().replace(b"K\xfb", huge))
    else:
        with zipfile.ZipFile(file) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(file, "w") as archive:
            for name, held in parts.items():
                archive.writestr(name, held.replace(b"K\xfb", huge) if "data.pkl" in name else held)
    assert "cannot be read" in refused(file, capsys)


def test_a_file_that_unpacks_to_more_than_it_is_is_not_unpacked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = saved(Path("a.pth"))
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/bomb", bytes(2**24))
    assert "its parts are larger than the file" in refused(file, capsys)


def test_what_is_no_checkpoint_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    empty, text, listed, folder = (Path(name) for name in ("empty", "text", "listed", "folder"))
    empty.touch()
    text.write_text("no weights")
    torch.save([1, 2], listed)
    folder.mkdir()
    for file in (empty, text):
        assert "cannot be read" in refused(file, capsys)
    assert "holds a list; a state_dict" in refused(listed, capsys)
    assert "folder" in refused(folder, capsys)
    assert "there is no checkpoint missing" in refused(Path("missing"), capsys)
    assert main(["import", "rfnett", str(text)]) == 2
    assert "did you mean rfnet?" in capsys.readouterr().err
    assert main(["import", "rfnet"]) == 2


def test_the_networks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import"]) == 0
    listed = capsys.readouterr().out
    assert all(
        name in listed for name in ("a2fseg_post", "acn", "imfuse_no1skip", "rfnet_brats2015")
    )


@pytest.mark.slow
def test_an_imported_run_is_used_as_any(phantom: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = saved(Path("model.pth"))
    words = [*SMALL, f"data.root={phantom}", "evaluation.subsets=[flair,t1+t1c+t2+flair]"]
    lists = {part: Path(f"{part}.txt") for part in ("train", "val", "test")}
    names = sorted(path.name for path in phantom.glob("BraTS*"))
    for (part, listed), chosen in zip(
        lists.items(), (names[2:], names[1:2], names[:1]), strict=True
    ):
        assert chosen, part
        listed.write_text("\n".join(chosen))
    split = f"data.split={{{', '.join(f'{part}: {file}' for part, file in lists.items())}}}"
    assert main(["import", "rfnet", str(file), *words, split, "--out", "a"]) == 0
    assert Split.load(Path("a/split.json")).test == (names[0],)
    assert main(["import", "rfnet", str(file), *words, "--out", "b"]) == 0
    assert "nobody here knows which cases it was trained on" in capsys.readouterr().out
    for run in ("a", "b"):
        assert main(["evaluate", run, "--device", "cpu"]) == 0
    assert (
        main(["evaluate", "b", "--device", "cpu", "--name", "same", "data.split=a/split.json"]) == 0
    )
    assert main(["compare", "a", "b/evaluation/same"]) == 0
    assert main(["report", "a"]) == 0
    assert main(["predict", "a", "--folder", str(phantom), "--out", "maps", "--device", "cpu"]) == 0
    assert len(list(Path("maps").glob("*.nii.gz"))) == len(names)
