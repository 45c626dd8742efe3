import os
from pathlib import Path

import numpy as np
import pytest

from bts_lightning.__main__ import main
from tests.data import datasets
from tests.data.datasets import tumour, volume, write_case, write_image


def test_prepare_tells_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    datasets.write_brats2021(tmp_path)
    write_case(tmp_path / "BraTS2021_00009", modalities=["t1c", "flair"])
    assert main(["prepare", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for words in (
        "BraTS 2021",
        "4 of 4 patients",
        "3, the other 1 only to predict",
        "0, 1, 2, 4",
        "20×18×16 at 1×1×1 mm",
        "●●●●",
        "○●○●",
        "t1c+flair",
        "3 of 3",
        "0.06",
    ):
        assert words in printed


def test_prepare_lists_every_fault_and_keeps_the_good_case(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = _write_ten_faults(tmp_path)
    assert main(["prepare", str(tmp_path)]) == 2
    printed = capsys.readouterr().out
    for file, reason in expected:
        line = next(line for line in printed.splitlines() if file in line)
        assert reason in line
    assert "Broken cases: 10." in printed
    assert "1 of 1 patients" in printed
    assert main(["prepare", str(tmp_path), "--skip-broken"]) == 0
    assert "Used: 1." in capsys.readouterr().out


def test_verify_reads_what_is_cached(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    datasets.write_brats2021(tmp_path, cases=2)
    assert main(["prepare", str(tmp_path)]) == 0
    file = next(tmp_path.rglob("image.npy"))
    times, content = file.stat(), file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    for words, built in (([], 0), (["--verify"], 1), (["--verify"], 0)):
        capsys.readouterr()
        assert main(["prepare", str(tmp_path), *words]) == 0
        assert f"{built}, the other {2 - built} were there" in capsys.readouterr().out
    assert file.read_bytes() == content


def test_a_disk_that_fills_while_it_is_written_is_named(
    tmp_path: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # No background, so the case takes more than the estimate that was made before.
    values = np.random.default_rng(0).integers(1, 1000, (64, 64, 64)).astype(np.int16)
    write_image(tmp_path / "data" / "BraTS2021_00000" / "BraTS2021_00000_t1.nii", values)
    assert main(["prepare", str(tmp_path / "data"), "--cache", str(small_disk)]) == 2
    lines = capsys.readouterr().err.splitlines()
    (line,) = [line for line in lines if line.startswith("error: ")]
    assert "BraTS2021_00000/image.npy cannot be written: No space left on device" in line
    assert [path.name for path in small_disk.rglob("*") if path.is_file()] == ["lock"]


def test_names_that_look_like_styles_are_printed_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "[red]set[/]"
    datasets.write_brats2021(root, cases=1)
    write_image(root / "stranger [/x].nii.gz", volume(0))
    (root / "BraTS2021_00001[b]").mkdir()
    (root / "BraTS2021_00001[b]" / "BraTS2021_00001_t1.nii.gz").write_bytes(b"\x1b[2J")
    (root / "esc \x1b[2J.nii.gz").write_bytes(b"")
    assert main(["prepare", str(root)]) == 2
    printed = capsys.readouterr().out
    assert "[red]set[/]" in printed
    assert "stranger [/x].nii.gz" in printed
    assert "BraTS2021_00001[b]/BraTS2021_00001_t1.nii.gz" in printed
    assert "esc \\x1b[2J.nii.gz" in printed
    assert "\x1b" not in printed


def test_nothing_usable_fails_even_when_skipping(tmp_path: Path) -> None:
    home = write_case(tmp_path / "BraTS2021_00000", modalities=["t1"])
    (home / "BraTS2021_00000_t1.nii.gz").write_bytes(b"")
    assert main(["prepare", str(tmp_path), "--skip-broken"]) == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--normalisation", "zsore"], "did you mean zscore?"),
        (["--workers", "0"], "workers is 0"),
    ],
)
def test_impossible_options_are_refused_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    datasets.write_brats2021(tmp_path, cases=1)
    assert main(["prepare", str(tmp_path), *words]) == 2
    assert told in capsys.readouterr().err


def _write_ten_faults(root: Path) -> list[tuple[str, str]]:
    """Write ten cases with a fault each and a good one; give file name and reason."""
    for number in range(11):
        write_case(root / f"BraTS2021_{number:05d}", seed=number, label=tumour())

    def of(number: int, what: str) -> Path:
        return root / f"BraTS2021_{number:05d}" / f"BraTS2021_{number:05d}_{what}.nii.gz"

    with_nan = volume(3).astype("float32")
    with_nan[10, 9, 8] = float("nan")
    moved = datasets.AFFINE.copy()
    moved[0, 3] = 40
    of(1, "t1").write_bytes(of(1, "t1").read_bytes()[:-100])
    of(2, "t1ce").write_text("<html>404 Not Found</html>")
    write_image(of(3, "t2"), with_nan)
    write_image(of(4, "flair"), volume(4)[:, :, 0])
    write_image(of(5, "t1"), volume(5, (20, 18, 15)))
    write_image(of(6, "t2"), volume(6), moved)
    write_image(of(7, "seg"), tumour((1, 2, 9)))
    write_image(of(8, "flair"), volume(8) * 0)
    write_case(root / "BraTS2021_00009", modalities=["t2"], ending=".nii")
    of(10, "t1").write_bytes(b"")
    return [
        (of(1, "t1").name, "truncated"),
        (of(2, "t1ce").name, "not a NIfTI image"),
        (of(3, "t2").name, "NaN or infinite"),
        (of(4, "flair").name, "expected 3 dimensions"),
        (
            of(5, "t1").name,
            "another grid: 20×18×15 voxels, BraTS2021_00005_t1ce.nii.gz has 20×18×16",
        ),
        (of(6, "t2").name, "40.0 mm"),
        (of(7, "seg").name, "unknown label value 9"),
        (of(8, "flair").name, "every voxel is 0"),
        ("BraTS2021_00009_t2.nii", "second file for t2"),
        (of(10, "t1").name, "the file is empty"),
    ]
