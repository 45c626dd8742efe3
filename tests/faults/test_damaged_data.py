"""Random damage of a prepared data set: the same result, built again, or one line."""

import json
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bts_lightning.data.cache import build, fingerprint
from bts_lightning.data.splits import random_split, split_from
from bts_lightning.errors import DataError, UserError
from bts_lightning.modalities import MODALITIES
from tests.data import datasets
from tests.data.datasets import tumour, volume, write_image
from tests.faults.damage import WORDS, cut, flip, place

CASES = 400
FILES = ("case.json", "image.npy", "label.npy", "foreground.npy", "split.json", "manifest.csv")


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """Prepare three cases of a manifest, and save a split of them."""
    root = tmp_path / "good"
    rows = []
    for seed, name in enumerate("abc"):
        files = {m: f"{name}_{m}.nii" for m in MODALITIES}
        for offset, file in enumerate(files.values()):
            write_image(root / file, volume(4 * seed + offset))
        write_image(root / f"{name}_label.nii", tumour())
        rows.append({"case": name, **files, "label": f"{name}_label.nii", "labels": "brats2021"})
    datasets.write_manifest(root, rows)
    cases = build(root).cases
    random_split(cases, fingerprint=fingerprint(cases)).save(root / "split.json")
    return root


def seen(root: Path, *, verify: bool = False) -> tuple[dict[str, Any], int]:
    """Give all that a training sees of a data set, and how many cases were built for it."""
    built = build(root, verify=verify)
    if built.faults:
        raise DataError(str(built.faults[0]))
    name = fingerprint(built.cases)
    result: dict[str, Any] = {"fingerprint": name}
    for case in built.cases:
        arrays = (case.image, case.label, case.foreground)
        result[case.name] = [case.patient, case.available, case.geometry, case.volumes_ml]
        result[case.name] += [None if array is None else array.tobytes() for array in arrays]
    result["split"] = split_from(str(root / "split.json"), built.cases, fingerprint=name)
    return result, built.built


@pytest.mark.slow
def test_any_damage_of_data_is_mended_or_told(
    good: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before, _ = seen(good)
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    for seed in range(CASES):
        chance = random.Random(seed)
        root = tmp_path / "damaged"
        # With its times, or each copy would be verified.
        shutil.copytree(good, root)
        name = FILES[seed % len(FILES)]
        file = next(root.rglob(name))
        times = file.stat()
        damage(file, chance)
        # Damage that leaves the time as it was is found by reading all.
        verify = file.exists() and name.endswith(".npy") and chance.random() < 0.3
        if verify:
            os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        begin = time.perf_counter()
        outcome = _outcome(root, before, verify)
        slowest = max(slowest, time.perf_counter() - begin)
        # A manifest that is still one is the user's word: another data set, with another name.
        assert outcome != "another" or name == "manifest.csv", (seed, name)
        outcomes[outcome] += 1
        shutil.rmtree(root)
    assert sum(outcomes.values()) == CASES
    assert {"same", "built again", "refused"} <= outcomes.keys()
    assert slowest < 5
    assert "Traceback" not in capfd.readouterr().err
    with capfd.disabled():
        print(f"\n{CASES} damaged files of data: {dict(outcomes)}, slowest {slowest:.2f} s")


def _outcome(root: Path, before: dict[str, Any], verify: bool) -> str:
    try:
        after, built = seen(root, verify=verify)
    except UserError as error:
        return "refused" if "\n" not in str(error) else "more than a line"
    if after == before:
        return "built again" if built else "same"
    assert after["fingerprint"] != before["fingerprint"], "a difference without a word"
    return "another"


def damage(file: Path, chance: random.Random) -> None:
    """Cut a file, flip a bit of it, change a type in it, or take something out."""
    kinds: list[Callable[[Path, random.Random], None]] = [cut, flip, _retype, _remove]
    chance.choice(kinds)(file, chance)


def _retype(file: Path, chance: random.Random) -> None:
    if file.suffix == ".json":
        content = json.loads(file.read_text())
        holder, key = place(content, chance)
        holder[key] = chance.choice(WORDS)
        file.write_text(json.dumps(chance.choice([content, holder, holder[key]]), indent=1) + "\n")
    elif file.suffix == ".npy":
        array = np.load(file)
        others = [array.astype(np.float32), array.astype(object), array[..., :1], array[None]]
        others += [np.full_like(array, -1 if array.dtype.kind == "i" else 7)]
        others += [np.full(array.shape, np.nan, np.float16), array.byteswap()]
        np.save(file, chance.choice(others), allow_pickle=True)
    else:
        rows = [line.split(",") for line in file.read_text().splitlines()]
        row = chance.choice(rows)
        row[chance.randrange(len(row))] = chance.choice(["", "5", "[]", "b_t1.nii", "a", "case"])
        file.write_text("\n".join(map(",".join, rows)) + "\n")


def _remove(file: Path, chance: random.Random) -> None:
    if file.suffix == ".json":
        content = json.loads(file.read_text())
        holder, key = place(content, chance)
        del holder[key]
        file.write_text(json.dumps(content, indent=1) + "\n")
    elif file.suffix == ".npy":
        file.unlink()
    else:
        rows = [line.split(",") for line in file.read_text().splitlines()]
        column, row = chance.randrange(len(rows[0])), chance.randrange(len(rows))
        for cells in rows if chance.random() < 0.5 else rows[row : row + 1]:
            del cells[column]
        file.write_text("\n".join(map(",".join, rows)) + "\n")
