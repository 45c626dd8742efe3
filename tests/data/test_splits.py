import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from bts_lightning.data.cache.prepare import prepare
from bts_lightning.data.splits import PARTS, Split, fold_split, random_split, split_from
from bts_lightning.errors import ConfigError, DataError
from tests.data import datasets

LISTS = Path(__file__).parent / "splits"
PUBLISHED = {
    "brats2018": [("1", 199, 29, 57), ("2", 199, 29, 57), ("3", 199, 29, 57)],
    "brats2020": [("", 219, 50, 100)],
    "brats2021": [("", 876, 125, 250)],
}


@dataclass(frozen=True)
class Named:
    """A case as a split sees it."""

    name: str
    patient: str
    is_labelled: bool = True


def _cases(count: int) -> list[Named]:
    return [Named(f"case{number:03d}", f"case{number:03d}") for number in range(count)]


def _parts(split: Split) -> list[set[str]]:
    return [set(getattr(split, part)) for part in PARTS]


def test_random_split_shares_all_cases_out_by_seventy_ten_twenty() -> None:
    split = random_split(_cases(100), fingerprint="x")
    assert [len(part) for part in _parts(split)] == [70, 10, 20]
    assert set.union(*_parts(split)) == {case.name for case in _cases(100)}


@pytest.mark.parametrize(("count", "sizes"), [(3, [1, 1, 1]), (4, [2, 1, 1]), (8, [5, 1, 2])])
def test_few_patients_still_fill_each_part(count: int, sizes: list[int]) -> None:
    assert [len(part) for part in _parts(random_split(_cases(count), fingerprint="x"))] == sizes


def test_two_patients_are_too_few() -> None:
    with pytest.raises(DataError, match="three or more"):
        random_split(_cases(2), fingerprint="x")


def test_seed_alone_decides() -> None:
    cases = _cases(30)
    first = split_from("random", cases, fingerprint="x", seed=1)
    assert split_from("random", cases[::-1], fingerprint="x", seed=1) == first
    assert split_from("random", cases, fingerprint="x", seed=2).test != first.test


def test_order_by_hash_is_the_same_on_every_machine() -> None:
    # Written down once: a change here moves cases between the parts of everybody's split.
    assert random_split(_cases(5), fingerprint="x").test == ("case004",)


def test_time_points_of_a_patient_stay_together() -> None:
    cases = [Named(f"p{n // 3}-{n % 3}", f"p{n // 3}") for n in range(30)]
    for split in (
        random_split(cases, fingerprint="x"),
        *(fold_split(cases, k, 5, fingerprint="x") for k in range(1, 6)),
    ):
        patients = [{name.split("-")[0] for name in part} for part in _parts(split)]
        assert not patients[0] & patients[1] | patients[0] & patients[2] | patients[1] & patients[2]


def test_folds_test_each_case_once() -> None:
    splits = [split_from(f"fold {k} of 4", _cases(10), fingerprint="x") for k in (1, 2, 3, 4)]
    tested = [name for split in splits for name in split.test]
    assert sorted(tested) == [case.name for case in _cases(10)]
    for split in splits:
        assert set.union(*_parts(split)) == set(tested)
        assert sum(map(len, _parts(split))) == 10


@pytest.mark.parametrize("text", ["fold 0 of 5", "fold 6 of 5", "fold 1 of 2"])
def test_impossible_folds_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="counted from 1"):
        split_from(text, _cases(10), fingerprint="x")


def test_cases_without_a_label_are_in_no_part() -> None:
    cases = [*_cases(10), Named("new", "new", is_labelled=False)]
    split = split_from("random", cases, fingerprint="x")
    assert "new" not in set.union(*_parts(split))


@pytest.mark.parametrize(
    ("data", "version", "sizes"),
    [(data, row[0], row[1:]) for data, rows in PUBLISHED.items() for row in rows],
)
def test_published_lists_resolve_to_the_names_of_the_data(
    data: str, version: str, sizes: Sequence[int]
) -> None:
    files: dict[str, str] = {part: str(LISTS / f"{data}-{part}{version}.txt") for part in PARTS}
    names = [
        name.removeprefix("HG_").removeprefix("LG_")
        for file in files.values()
        for name in Path(file).read_text().split()
    ]
    cases = [Named(name, name) for name in names]
    split = split_from(files, cases, fingerprint="x")
    assert [len(part) for part in _parts(split)] == list(sizes)
    assert set.union(*_parts(split)) == set(names)


def test_listed_cases_that_the_data_lack_are_told(tmp_path: Path) -> None:
    files = _write(tmp_path, train=["case000", "HG_case001", "gone"], test=["case002"])
    with pytest.raises(DataError, match=r"1 of its cases are not in the data set, .* as gone"):
        split_from(files, _cases(3), fingerprint="x")
    split = split_from(files, _cases(3), fingerprint="x", missing="skip")
    assert (split.train, split.missing) == (("case000", "case001"), ("gone",))


def test_overlap_of_lists_is_refused(tmp_path: Path) -> None:
    files = _write(tmp_path, train=["case000", "case001"], test=["HG_case001"])
    with pytest.raises(DataError, match=r"patient case001 .* is in train and in test"):
        split_from(files, _cases(3), fingerprint="x")


def test_patient_in_two_lists_is_refused(tmp_path: Path) -> None:
    cases = [Named("p-000", "p"), Named("p-001", "p")]
    files = _write(tmp_path, train=["p-000"], val=["p-001"])
    with pytest.raises(DataError, match="patient p "):
        split_from(files, cases, fingerprint="x")


def test_unknown_part_names_the_nearest(tmp_path: Path) -> None:
    files = _write(tmp_path, trian=["case000"])
    with pytest.raises(ConfigError, match="did you mean train"):
        split_from(files, _cases(3), fingerprint="x")


def test_list_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no\.txt, the train list"):
        split_from({"train": str(tmp_path / "no.txt")}, _cases(3), fingerprint="x")


def test_unknown_kind_of_split_says_what_there_is() -> None:
    with pytest.raises(ConfigError, match="write `random`, `fold 1 of 5`"):
        split_from("randm", _cases(3), fingerprint="x")


def test_saved_split_is_read_back(tmp_path: Path) -> None:
    split = random_split(_cases(10), fingerprint="abc", seed=3)
    split.save(tmp_path / "run" / "split.json")
    assert Split.load(tmp_path / "run" / "split.json") == split
    again = split_from(str(tmp_path / "run" / "split.json"), _cases(10), fingerprint="abc")
    assert again == split


def test_edited_split_with_an_overlap_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    random_split(_cases(10), fingerprint="abc").save(path)
    content = json.loads(path.read_text())
    content["test"] += content["train"]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="not as it was saved; if you have edited it"):
        split_from(str(path), _cases(10), fingerprint="abc")
    del content["checksum"]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="one part only"):
        split_from(str(path), _cases(10), fingerprint="abc")


@pytest.mark.parametrize("text", ["", "{}", '{"train": 3}', "[]"])
def test_other_json_is_no_split(tmp_path: Path, text: str) -> None:
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(DataError, match=r"no split that this program saved"):
        Split.load(tmp_path / "split.json")


def test_a_pipe_is_no_split(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "split.json")
    with pytest.raises(DataError, match=r"no split that this program saved .*not a regular file"):
        Split.load(tmp_path / "split.json")
    with pytest.raises(DataError, match=r"the val list of the split, cannot be read: .*not a reg"):
        split_from({"val": str(tmp_path / "split.json")}, _cases(3), fingerprint="x")


def test_cached_cases_can_be_split(tmp_path: Path) -> None:
    split = split_from("random", prepare(datasets.write_brats2021(tmp_path)), fingerprint="x")
    assert sum(map(len, _parts(split))) == 3


def _write(folder: Path, **lists: list[str]) -> dict[str, str]:
    files = {}
    for part, names in lists.items():
        path = folder / f"{part}.txt"
        path.write_text("\n".join(names) + "\n")
        files[part] = str(path)
    return files
