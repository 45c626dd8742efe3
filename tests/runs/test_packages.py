"""One file of a run: it gives the same predictions, and nothing else than what was packed."""

import io
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from hashlib import sha256
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

from bts_lightning.__main__ import main
from bts_lightning.commands.evaluate import evaluate
from bts_lightning.commands.pack import pack
from bts_lightning.config import build
from bts_lightning.distillation.teacher import Teacher
from bts_lightning.errors import ConfigError, UserError
from bts_lightning.files import checksum
from bts_lightning.report.card import scores
from bts_lightning.report.summary import notes, summarise
from bts_lightning.report.table import EvaluationTable
from bts_lightning.runs import container
from bts_lightning.runs.checkpoints import read_checkpoint
from bts_lightning.runs.container import open_package, unpack
from bts_lightning.runs.opening import load_run
from bts_lightning.runs.packing import nameless
from bts_lightning.runs.seen import Seen

CASE = "BraTS2021_00000"


@pytest.fixture(scope="session")
def packed(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(trained, tmp_path_factory.mktemp("packed") / "tiny.bts", evaluation="none")


@pytest.fixture(scope="module")
def scored(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a copy of the run with an evaluation."""
    run = Path(shutil.copytree(trained, tmp_path_factory.mktemp("scored") / "run"))
    evaluate(run, device="cpu")
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Give a copy of the run that a test may spoil."""
    return Path(shutil.copytree(trained, tmp_path / "runs" / "uhemis" / "1"))


def predicted(words: list[object], phantom: Path, out: Path) -> tuple[bytes, bytes]:
    """Give the voxels of the label map and of the probabilities that some runs predict."""
    image = phantom / CASE / f"{CASE}_flair.nii.gz"
    given = ["--flair", image, "--out", out / "seg.nii.gz", "--probabilities", "--device", "cpu"]
    assert main(["predict", *map(str, [*words, *given])]) == 0
    files = (out / "seg.nii.gz", out / "seg_probabilities.nii.gz")
    first, second = (np.asarray(nib.load(file).dataobj).tobytes() for file in files)
    return first, second


def rewritten(file: Path, out: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """Write a package again with other parts, as somebody would who knows the format."""
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    change(parts)
    parts.pop(container.MANIFEST)
    container.write_package(out, {}, parts)
    return out


def resealed(archive: io.BytesIO, out: Path) -> Path:
    """Write a zip with the seal that it needs to be looked into."""
    whole = archive.getvalue()[: -container._SEAL]
    out.write_bytes(whole + sha256(whole).hexdigest().encode())
    return out


def test_a_package_predicts_what_its_run_does(
    trained: Path, packed: Path, phantom: Path, tmp_path: Path
) -> None:
    expected = predicted([trained], phantom, tmp_path / "run")
    assert predicted([packed], phantom, tmp_path / "package") == expected
    assert main(["unpack", str(packed), str(tmp_path / "folder")]) == 0
    assert predicted([tmp_path / "folder"], phantom, tmp_path / "unpacked") == expected
    # Packed again it is still the same.
    pack(tmp_path / "folder", tmp_path / "again.bts")
    assert predicted([tmp_path / "again.bts"], phantom, tmp_path / "again") == expected


@pytest.mark.slow
def test_a_package_of_several_runs_predicts_their_mean(
    run: Path, trained: Path, phantom: Path, tmp_path: Path
) -> None:
    file = run / "checkpoints" / "other.ckpt"
    (last,) = (run / "checkpoints").glob("*.ckpt")
    weights = read_checkpoint(last)
    generator = torch.Generator().manual_seed(0)
    for value in weights["state_dict"].values():
        if value.is_floating_point():
            value += 0.05 * torch.randn(value.shape, generator=generator)
    torch.save({"state_dict": weights["state_dict"]}, file)
    last.unlink()
    both = [trained, run]
    out = pack(both, tmp_path / "both.bts")
    expected = predicted([*both], phantom, tmp_path / "runs")
    assert predicted([out], phantom, tmp_path / "package") == expected
    assert predicted([trained], phantom, tmp_path / "one") != expected
    unpack(out, tmp_path / "folder")
    assert predicted([tmp_path / "folder"], phantom, tmp_path / "unpacked") == expected


def test_any_changed_byte_is_refused(packed: Path, tmp_path: Path) -> None:
    whole = packed.read_bytes()
    with zipfile.ZipFile(packed) as archive:
        starts = [entry.header_offset for entry in archive.infolist()] + [archive.start_dir]
    # Headers, the last bytes of each part, the directory, its end and the seal; and some between.
    places = [start + step for start in starts for step in (-1, 0, 5, 11, 40) if start + step >= 0]
    places += [*range(len(whole) - 90, len(whole)), *range(0, len(whole), len(whole) // 60)]
    spoilt = tmp_path / "tiny.bts"
    for place in places:
        spoilt.write_bytes(
            whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]
        )
        with pytest.raises(UserError, match="not as it was written"):
            unpack(spoilt, tmp_path / "folder")
        assert sorted(file.name for file in tmp_path.iterdir()) == ["tiny.bts"]


@pytest.mark.parametrize(
    ("content", "line"),
    [(b"", "is no package"), (b"text", "is no package"), ("half", "is no package")],
)
def test_what_is_no_package_is_one_line(
    content: bytes | str,
    line: str,
    packed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "a.bts"
    whole = packed.read_bytes()
    file.write_bytes(content if isinstance(content, bytes) else whole[: len(whole) // 2])
    for words in (["unpack", file], ["predict", file, "--flair", "x", "--out", "o.nii.gz"]):
        assert main([*map(str, words)]) == 2
        told = capsys.readouterr().err
        assert line in told
        assert len(told.splitlines()) == 1


def test_a_pipe_and_an_absent_file_are_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.bts")
    for name, line in (("pipe.bts", "not a regular file"), ("none.bts", "there is no package")):
        with pytest.raises(UserError, match=line):
            open_package(tmp_path / name)


def test_an_unpacked_part_that_was_changed_is_refused(
    packed: Path, phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unpack(packed, tmp_path / "folder")
    file = tmp_path / "folder" / container.WEIGHTS
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 1
    file.write_bytes(whole)
    words = ["--flair", str(phantom / CASE / f"{CASE}_flair.nii.gz"), "--out", "seg.nii.gz"]
    assert main(["predict", str(tmp_path / "folder"), *words, "--device", "cpu"]) == 2
    assert "was changed after it was packed" in capsys.readouterr().err


def hostile(kind: str, packed: Path, out: Path) -> Path:
    """Make a package that does something else, with all the checksums that it needs."""
    with zipfile.ZipFile(packed) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    built = io.BytesIO()
    with zipfile.ZipFile(built, "w") as archive:
        archive.comment = b"0" * 64
        extra = {
            "leads out": "../evil.yaml",
            "is absolute": str(out.parent / "evil.yaml"),
            "leads out below": "runs/../../evil.yaml",
            "code": "runs/1/code.py",
        }
        if kind in extra:
            parts[extra[kind]] = b"evil"
        if kind == "no manifest":
            parts.pop(container.MANIFEST)
        if kind == "other parts":
            parts.pop(container.SEEN)
        if kind == "other content":
            parts[container.CONFIG] += b"\n"
        if kind == "newer":
            told = json.loads(parts[container.MANIFEST]) | {"format": "bts package 2"}
            parts[container.MANIFEST] = json.dumps(told).encode()
        if kind == "long manifest":
            parts[container.MANIFEST] += b" " * 2**20
        for name, part in parts.items():
            is_bomb = kind == "bomb" and name == container.WEIGHTS
            how = zipfile.ZIP_DEFLATED if is_bomb else zipfile.ZIP_STORED
            archive.writestr(name, bytes(2**24) if is_bomb else part, how)
        if kind == "twice":
            with pytest.warns(UserWarning, match="Duplicate name"):
                archive.writestr(container.CONFIG, parts[container.CONFIG])
        if kind == "overlap":
            # Each entry of the directory is the same bytes of the file again.
            first = archive.getinfo(container.WEIGHTS)
            for number in range(1, 60):
                entry = zipfile.ZipInfo(f"runs/{number}/{container.WEIGHTS}")
                for key in ("CRC", "file_size", "compress_size", "header_offset"):
                    setattr(entry, key, getattr(first, key))
                archive.filelist.append(entry)
    return resealed(built, out)


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("leads out", "is no part of one"),
        ("is absolute", "is no part of one"),
        ("leads out below", "is no part of one"),
        ("code", "is no part of one"),
        ("no manifest", "manifest.json"),
        ("other parts", "lists other parts than it holds"),
        ("other content", "is not what the manifest says"),
        ("newer", "bts package 2, and this bts reads bts package 1"),
        ("long manifest", "manifest is too long"),
        ("bomb", "would unpack to more than it holds"),
        ("twice", "would unpack to more than it holds"),
        ("overlap", "would unpack to more than it holds"),
    ],
)
def test_a_hostile_package_is_one_line_and_leaves_nothing(
    kind: str, line: str, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    file = hostile(kind, packed, tmp_path / "in" / "evil.bts")
    assert main(["unpack", str(file), str(tmp_path / "in" / "folder")]) == 2
    told = capsys.readouterr().err
    assert line in told
    assert len(told.splitlines()) == 1
    assert [one.name for one in tmp_path.rglob("*")] == ["in", "evil.bts"]


@pytest.mark.parametrize("target", ["os.system", "subprocess.Popen", "torch.load", "evil.Net"])
def test_a_packed_configuration_names_no_other_target(
    target: str, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(parts: dict[str, bytes]) -> None:
        tree = yaml.safe_load(parts[container.CONFIG])
        tree["net"] = tree["task"]["net"] = {"_target_": target, "args": f"touch {tmp_path}/ran"}
        text = yaml.safe_dump(tree)
        parts[container.CONFIG] = f"# checksum: {checksum(text)}\n{text}".encode()

    file = rewritten(packed, tmp_path / "evil.bts", change)
    assert main(["predict", str(file), "--flair", "x.nii.gz", "--out", "seg.nii.gz"]) == 2
    told = capsys.readouterr().err
    assert target in told
    assert len(told.splitlines()) == 1
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("weights", [b"", b"\xff" * 8 + b"{", b"\x80\x04cos\nsystem\n", b"half"])
def test_packed_weights_that_are_no_tensors_are_one_line(
    weights: bytes, packed: Path, phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(parts: dict[str, bytes]) -> None:
        whole = parts[container.WEIGHTS]
        parts[container.WEIGHTS] = whole[: len(whole) // 2] if weights == b"half" else weights

    file = rewritten(packed, tmp_path / "evil.bts", change)
    image = phantom / CASE / f"{CASE}_flair.nii.gz"
    assert main(["predict", str(file), "--flair", str(image), "--out", "seg.nii.gz"]) == 2
    told = capsys.readouterr().err
    assert f"{container.WEIGHTS} cannot be read" in told
    assert len(told.splitlines()) == 1


def test_a_package_tells_no_name_and_no_place(
    trained: Path, scored: Path, phantom: Path, tmp_path: Path
) -> None:
    whole = pack(scored, tmp_path / "a.bts").read_bytes()
    split = json.loads((trained / "split.json").read_text())
    names = [*split["train"], *split["val"], *split["test"]]
    assert len(names) == 8
    places = [str(phantom), str(trained), str(scored)]
    told = [name for name in [*names, *places] if name.encode() in whole]
    assert not told


def test_scores_name_no_case(scored: Path) -> None:
    table = EvaluationTable.read(scored / "evaluation" / "test")
    first = table.cases[0]
    # One that lacks modalities is named in a report.
    lacks = table.rows[(table.rows["case"] != first) | (table.rows["subset"] == "flair")]
    named = summarise(EvaluationTable.from_rows(lacks), {})
    assert first in " ".join(notes(named))
    told = " ".join(notes(summarise(nameless(EvaluationTable.from_rows(lacks)), {})))
    assert "case 1" in told
    assert first not in told
    whole = json.dumps(scores(summarise(nameless(table), {"split": {"part": "test"}})))
    assert not [name for name in table.cases if name in whole]


def test_who_has_a_case_can_ask_whether_it_was_seen(
    trained: Path, packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split = json.loads((trained / "split.json").read_text())
    (folder,) = open_package(packed)
    seen = Seen.load(folder)
    assert seen is not None
    for part in ("train", "val", "test"):
        assert [seen.part_of(name) for name in split[part]] == [part] * len(split[part])
    assert seen.part_of("BraTS2021_99999") is None
    asked = ["--seen", split["train"][0], "--seen", "Somebody"]
    assert main(["unpack", str(packed), *asked]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{split['train'][0]}: train",
        "Somebody: in no part of its split",
    ]


def test_another_scan_of_a_patient_was_seen_too() -> None:
    from bts_lightning.data.splits import Split

    split = Split(("BraTS-GLI-00001-000",), ("sub-7_ses-1",), ("case 9",), "lists", "")
    seen, other = Seen.of(split), Seen.of(split)
    assert seen.part_of("BraTS-GLI-00001-103") == "train"
    assert seen.part_of("sub-7_ses-2") == "val"
    assert seen.part_of("scan 12", patient="case 9") == "test"
    assert seen.part_of("BraTS-GLI-00002-000") is None
    # Two packages cannot be laid over each other.
    assert not seen.digests["train"] & other.digests["train"]


def test_a_package_teaches_whom_its_cases_allow(packed: Path, trained: Path) -> None:
    teacher = Teacher.of(str(packed))
    for seed, refusal in ((0, None), (1, "trained on")):
        data = build(load_run(trained, [f"data.split_seed={seed}"])["data"])
        data.prepare_data()
        data.setup("fit")
        with pytest.raises(ConfigError, match=refusal) if refusal else nullcontext():
            teacher.check_data(data)


def test_predicting_cases_that_were_trained_on_is_said(
    trained: Path, packed: Path, phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split = json.loads((trained / "split.json").read_text())
    for name in (split["train"][0], split["test"][0]):
        shutil.copytree(phantom / name, tmp_path / "data" / name)
    words = ["--folder", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["predict", str(packed), *words]) == 0
    told = capsys.readouterr().out
    assert f"1 of these 2 cases, {split['train'][0]} first" in told
    assert "in the train part" in told


def test_nothing_is_written_into_a_package(
    packed: Path, tmp_path: Path, phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = packed.read_bytes()
    for words in (["evaluate"], ["evaluate", "--part", "val", "--fit-temperature"]):
        assert main([*words, str(packed), f"data.root={phantom}"]) == 2
        assert "is a package, in which nothing is written" in capsys.readouterr().err
    assert main(["train", str(packed), f"data.root={phantom}"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert packed.read_bytes() == whole
    unpack(packed, tmp_path / "folder")
    assert main(["train", str(tmp_path / "folder"), f"data.root={phantom}"]) == 2
    assert "no training can go on from it" in capsys.readouterr().err
    with pytest.raises(UserError, match="is there already"):
        unpack(packed, tmp_path / "folder")


def test_an_unpacked_run_is_evaluated(packed: Path, phantom: Path, tmp_path: Path) -> None:
    unpack(packed, tmp_path / "folder")
    words = [f"data.root={phantom}", "evaluation.subsets=[flair]"]
    folder = evaluate(tmp_path / "folder", words=words, device="cpu")
    assert (folder / "cases.csv").is_file()


def test_a_place_of_this_machine_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trainer.default_root_dir=/here is a place"):
        pack(run, tmp_path / "a.bts", words=["trainer.default_root_dir=/here"])
    assert not (tmp_path / "a.bts").exists()


def test_the_card_is_what_a_hub_reads(scored: Path, tmp_path: Path) -> None:
    said = {
        "title": "Tiny: a test",
        "license": "cc-by-4.0",
        "data": "Phantom",
        "data_license": "CC0",
    }
    unpack(pack(scored, tmp_path / "a.bts", said=said), tmp_path / "folder")
    _, head, body = (tmp_path / "folder" / "README.md").read_text().split("---\n", 2)
    fields = yaml.safe_load(head)
    assert fields["license"] == "cc-by-4.0"
    assert fields["library_name"] == "bts_lightning"
    assert fields["pipeline_tag"] == "image-segmentation"
    assert {"mri", "uhemis"} <= set(fields["tags"])
    (index,) = fields["model-index"]
    (result,) = index["results"]
    assert index["name"] == "Tiny: a test"
    assert result["task"]["type"] == "image-segmentation"
    assert result["dataset"] == {"type": "phantom", "name": "Phantom", "split": "test"}
    told = json.loads((tmp_path / "folder" / "scores.json").read_text())
    means = {
        f"Dice {row['region']}, {row['subset']}": row["mean"]
        for row in told["rows"]
        if row["metric"] == "dice" and row["subset"] == "mean over 15"
    }
    assert {m["name"]: m["value"] for m in result["metrics"]} == pytest.approx(means, abs=1e-4)
    assert len(re.findall(r"^\| [●○] \| [●○] \| [●○] \| [●○] \|", body, re.MULTILINE)) == 2 * 15
    for words in (
        "## Intended use",
        "no medical device",
        "Phantom): CC0",
        "## Limits",
        "Apache-2.0",
    ):
        assert words in body


def test_scores_of_something_else_do_not_go_along(scored: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.bts"
    with pytest.raises(UserError, match="was made with mirror False, the package would have True"):
        pack(scored, out, words=["evaluation.mirror=true"])
    with pytest.raises(UserError, match="no cases"):
        pack(scored, out, evaluation="nowhere")
    run = Path(shutil.copytree(scored, tmp_path / "run"))
    (file,) = (run / "checkpoints").glob("*.ckpt")
    content = read_checkpoint(file)
    next(iter(content["state_dict"].values())).add_(1)
    torch.save(content, file)
    with pytest.raises(UserError, match="scored other weights"):
        pack(run, out)
    assert not out.exists()
    pack(run, out, evaluation="none")
    card = zipfile.ZipFile(out).read("README.md").decode()
    assert "Nobody has evaluated these weights" in card


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["RUN"], "name the file to write last"),
        (["RUN", "a.zip"], "name the file to write last"),
        (["a.bts"], "name a run"),
        (["RUN", "RUN", "a.bts"], "given twice"),
        (["RUN", "a.bts", "--evaluation", "val"], "no cases.csv"),
    ],
)
def test_words_that_do_not_say_what_to_pack_are_one_line(
    words: list[str], line: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pack", *(str(trained) if word == "RUN" else word for word in words)]) == 2
    told = capsys.readouterr().err
    assert line in told
    assert len(told.splitlines()) == 1
