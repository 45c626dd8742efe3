"""Damaged images: each is read, or refused as a fault of its case, soon and in little memory."""

import gzip
import random
import time
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from bts_lightning.data.cache import build, nifti
from bts_lightning.data.cache.nifti import UnreadableError, count_voxels, read_nifti
from bts_lightning.data.cache.reading import BrokenCaseError
from bts_lightning.data.cache.ready import load_case
from bts_lightning.data.layouts import LABEL_VALUES, Case
from tests.data.datasets import AFFINE, write_case

HEADERS = 3000
SHAPE = (7, 6, 5)
KINDS = {"one": nib.Nifti1Image, "two": nib.Nifti2Image}
TYPES = (np.uint8, np.int16, np.int32, np.int64, np.uint64, np.float32, np.float64)
NUMBERS = (0, 1, -1, 2, 7, 255, 2**15 - 1, -(2**15), 2**31 - 1, 2**62, 0.5, 1e-45, 1e38, 1e300)
NUMBERS += (float("nan"), float("inf"), -float("inf"))


def image(kind: str, dtype: Any = np.int16) -> Any:
    """Make a tiny label, which is an image as well."""
    values = (np.arange(np.prod(SHAPE)) % 4).astype(dtype).reshape(SHAPE)
    made = KINDS[kind](values, AFFINE, dtype=dtype)
    made.set_qform(AFFINE, code=1)
    return made


def changed(content: bytes, field: str, value: Any, place: Any = slice(None)) -> bytes:
    """Write a value into a field of a header, as far as the field can hold it."""
    kind = nib.Nifti2Header if content[:4] == (540).to_bytes(4, "little") else nib.Nifti1Header
    header = np.frombuffer(content[: kind.template_dtype.itemsize], kind.template_dtype).copy()
    with np.errstate(all="ignore"):
        header[field][..., place] = np.asarray(value).astype(header.dtype[field].base)
    return header.tobytes() + content[header.nbytes :]


@pytest.mark.parametrize(
    ("kind", "field", "value", "told"),
    [
        ("one", "vox_offset", np.nan, "not a NIfTI image"),
        ("one", "vox_offset", np.inf, "not a NIfTI image"),
        ("one", "vox_offset", 0, "not a NIfTI image"),
        ("two", "vox_offset", -(2**62), "not a NIfTI image"),
        ("one", "scl_inter", np.nan, "not a NIfTI image"),
        ("one", "scl_inter", np.inf, "not a NIfTI image"),
        ("one", "dim", [3, -7, -6, 5, 1, 1, 1, 1], "not a NIfTI image: shape"),
        ("two", "dim", [3, 2**62, 2**62, 2**62, 1, 1, 1, 1], "truncated: at most"),
        ("two", "dim", [3, 2**40, 35, 1, 1, 1, 1, 1], "truncated: at most"),
        ("one", "quatern_b", 1e30, "not a NIfTI image"),
        ("one", "quatern_b", np.nan, "its affine cannot be inverted"),
    ],
)
def test_a_field_that_makes_no_sense_is_a_fault_of_its_case(
    tmp_path: Path, kind: str, field: str, value: Any, told: str
) -> None:
    write_case(tmp_path / "BraTS2021_00001")
    file = tmp_path / "BraTS2021_00000" / "BraTS2021_00000_t1.nii.gz"
    content = image(kind).to_bytes()
    content = changed(content, "sform_code" if field.startswith("quat") else field, 0)
    if field == "scl_inter":
        content = changed(content, "scl_slope", 2)
    file.parent.mkdir()
    file.write_bytes(gzip.compress(changed(content, field, value)))
    built = build(tmp_path)
    (fault,) = built.faults
    assert (fault.case, fault.file) == ("BraTS2021_00000", file)
    assert fault.reason.startswith(told)
    assert [case.name for case in built.cases] == ["BraTS2021_00001"]


@pytest.mark.parametrize("packed", [False, True])
def test_no_more_is_unpacked_than_the_header_announces(tmp_path: Path, packed: bool) -> None:
    file = tmp_path / "bomb.nii"
    bomb = image("one").to_bytes() + bytes(2**27)
    file.write_bytes(gzip.compress(bomb, 1) if packed else bomb)
    tracemalloc.start()
    with pytest.raises(UnreadableError, match="goes on behind the"):
        read_nifti(file)
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(b"") * 500_000,
        b"\x1f\x8b\x08\x08" + bytes(6) + b"A" * 20_000_000,
        gzip.compress(image("one").to_bytes()) + gzip.compress(b"") * 500_000,
    ],
    ids=["empty parts", "a long name", "empty parts behind it"],
)
def test_packed_data_without_content_take_no_time(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "empty.nii.gz"
    file.write_bytes(content)
    begin = time.process_time()
    with pytest.raises(UnreadableError):
        read_nifti(file)
    assert time.process_time() - begin < 1


def test_a_header_announces_no_more_than_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nifti, "LARGEST", 700)
    file = tmp_path / "large.nii"
    file.write_bytes(image("one").to_bytes())
    with pytest.raises(UnreadableError, match="announces 772 bytes; more than 700 are not read"):
        read_nifti(file)
    assert count_voxels(file) == 0


@pytest.mark.slow
def test_any_damage_of_a_header_is_read_or_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    counts = {"read": 0, "refused": 0}
    slowest = 0.0
    good = tmp_path / "good.nii"
    good.write_bytes(image("one").to_bytes())
    for seed in range(HEADERS):
        chance = random.Random(seed)
        file = tmp_path / f"{seed}.nii"
        file.write_bytes(_damaged(chance))
        label = chance.choice([file, good, None])
        images = {"t1": good, "t2": file} if chance.random() < 0.5 else {"t1": file}
        case = Case("x", "x", "test", images, label, LABEL_VALUES["brats2023"])
        begin = time.perf_counter()
        try:
            count_voxels(file)
            ready = load_case(case)
        except BrokenCaseError:
            counts["refused"] += 1
        else:
            assert np.isfinite(ready.image).all()
            counts["read"] += 1
        slowest = max(slowest, time.perf_counter() - begin)
        file.unlink()
    assert sum(counts.values()) == HEADERS
    assert min(counts.values()) > HEADERS / 10, counts
    assert slowest < 5
    assert not caplog.records
    printed = capfd.readouterr()
    assert printed.out == printed.err == ""
    with capfd.disabled():
        print(f"\n{HEADERS} damaged headers: {counts}, slowest {slowest:.2f} s")


def _damaged(chance: random.Random) -> bytes:
    """Damage one to three fields, or bytes, of a header; and now and then what holds it."""
    kind = chance.choice(list(KINDS))
    content = image(kind, chance.choice(TYPES)).to_bytes()
    fields = KINDS[kind].header_class.template_dtype.fields
    for _ in range(chance.randint(1, 3)):
        if chance.random() < 0.3:
            place = chance.randrange(4, KINDS[kind].header_class.sizeof_hdr)
            flipped = content[place] ^ 1 << chance.randrange(8)
            content = content[:place] + bytes([flipped]) + content[place + 1 :]
            continue
        field = chance.choice(
            [name for name, (dtype, _) in fields.items() if dtype.base.kind != "S"]
        )
        places = int(np.prod(fields[field][0].shape))
        place = chance.randrange(places) if places > 1 and chance.random() < 0.7 else slice(None)
        content = changed(content, field, chance.choice(NUMBERS), place)
    if chance.random() < 0.1:
        content = content[: chance.randrange(len(content))]
    if chance.random() < 0.3:
        content = gzip.compress(content, 1)
        if chance.random() < 0.3:
            content = content[: chance.randrange(len(content))]
    return content
