"""Who keeps what in PASSION's ten files, drawn again by the rule of its authors.

The files themselves (github.com/Jun-Jie-Shi/PASSION at fd308b5, Apache-2.0) are not here. Of each,
what was read in it: how many cases have each mask, and the masks of its last cases; of one, all.
"""

import csv
import re
from math import prod
from pathlib import Path

import numpy as np
import pytest

from bts_lightning.availability import MissingRates, Uniform15
from bts_lightning.modalities import COMPLETE, MODALITIES, SUBSETS, Subset

# Masks by their number there, as flags of FLAIR, T1c, T1, T2.
MASKS = [f"{mask:04b}" for mask in (1, 4, 2, 8, 5, 6, 10, 3, 9, 12, 14, 11, 13, 7, 15)]
# Quotas in the order in which they are filled there, as flags of T1, T1c, FLAIR, T2.
QUOTAS = [f"{quota:04b}" for quota in (15, 13, 14, 12, 11, 10, 9, 8, 7, 5, 6, 4, 3, 2, 1)]
# Year; rates of missing for T1, T1c, FLAIR, T2, in tenths; cases with each mask; the last masks.
FILES = [
    ("2020", "2468", "2 12 38 6 3 53 23 9 1 9 35 5 2 12 9", "1 7 11 11 2 2 6 3 2"),
    ("2020", "1379", "1 9 37 2 1 89 16 5 1 4 39 1 1 9 4", "5 5 2 5 5 5 2 2 5 9 2"),
    ("2020", "2258", "1 14 14 3 3 58 14 3 1 15 57 3 3 15 15", "10 10 9 5 5 5 2 2 5 1 6"),
    ("2020", "2285", "3 15 14 1 14 56 3 14 1 3 14 3 3 60 15", "10 13 4 5 5 5 2 2 5 1 7"),
    ("2020", "5528", "2 8 9 42 2 9 36 2 8 35 38 9 9 2 8", "6 11 3 9 2 2 3 8 12 3 1"),
    ("2020", "5582", "41 8 8 2 35 9 2 38 9 2 2 8 9 38 8", "7 11 0 4 2 2 3 8 12 0 1"),
    ("2020", "8825", "14 3 4 62 3 1 14 4 62 14 3 15 15 1 4", "8 4 3 8 8 8 3 3 8 0 3"),
    ("2020", "8852", "61 3 3 15 14 1 3 17 62 3 1 14 15 4 3", "8 4 0 8 8 8 0 0 8 0 0"),
    ("2018", "2468", "2 11 34 5 2 47 20 10 1 7 34 6 1 11 8", "1 6 2 5 7 5 2 5 10 2"),
    ("2018", "1379", "1 9 36 1 1 79 14 4 1 3 37 1 1 8 3", "2 5 7 5 5 5 5 10 10 2"),
]
# All masks of 2020's 2468; letters are numbers above nine.
WHOLE = (
    "a2ae6569ad169edaa375aa55515555e336551255242bd5d65255ea651526555a21d655225518705a35ad55a9a4d1e7"
    "a2b5a9695da56917455d26655e225aaa5652a62222667a212aa625552aea22a5a50221525e62adb276aae522d62796"
    "9aaca521d69a25a35c725517bb22632"
)
SPLITS = Path(__file__).parent / "data" / "splits"
LISTS = {"2020": "brats2020-train.txt", "2018": "brats2018-train1.txt"}


def cases(year: str) -> list[str]:
    return sorted((SPLITS / LISTS[year]).read_text(encoding="utf-8").split())


def drawn(count: int, digits: str) -> list[int]:
    """Fill quotas and shuffle, as the authors did; who is left with nothing draws by itself."""
    rates = [int(digit) / 10 for digit in digits]
    chance = np.random.RandomState(1037)
    chance.rand(4 * count)  # drawn there too, and overwritten
    kept = np.zeros((count, 4), bool)
    first = 0
    for quota in QUOTAS:
        share: float = count
        for flag, rate in zip(quota, rates, strict=True):
            share *= 1 - rate if flag == "1" else rate
        last = first + max(1, int(share))
        kept[first:last] = [flag == "1" for flag in quota]
        first = last
    order = np.arange(count)
    chance.shuffle(order)
    kept = kept[order]
    for row in kept:
        while not row.any():
            row[:] = [chance.rand() > rate for rate in rates]
    return [MASKS.index("".join("01"[int(row[m])] for m in (2, 1, 0, 3))) for row in kept]


def ours(mask: int) -> Subset:
    flair, t1c, t1, t2 = (flag == "1" for flag in MASKS[mask])
    return t1, t1c, t2, flair


@pytest.mark.parametrize(("year", "digits", "counts", "last"), FILES)
def test_rule_gives_what_was_read_in_the_file(
    year: str, digits: str, counts: str, last: str
) -> None:
    masks = drawn(len(cases(year)), digits)
    assert [masks.count(mask) for mask in range(15)] == [int(n) for n in counts.split()]
    end = [int(mask) for mask in last.split()]
    assert masks[-len(end) :] == end


def test_rule_gives_every_mask_of_the_file_that_the_experiment_names() -> None:
    assert drawn(219, "2468") == [int(letter, 15) for letter in WHOLE]


@pytest.mark.parametrize(("year", "digits"), [file[:2] for file in FILES])
def test_cases_train_with_what_the_file_says(year: str, digits: str, tmp_path: Path) -> None:
    names, file = cases(year), tmp_path / f"Brats{year}_imb_split_mr{digits}.csv"
    masks = drawn(len(names), digits)
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["data_name", "mask_id", "mask", "pos_mask_ids"])
        for name, mask in zip(names, masks, strict=True):
            writer.writerow([name, mask, [flag == "1" for flag in MASKS[mask]], []])
    policy = MissingRates(file=file)
    dropping = MissingRates(file=file, within=Uniform15())
    for i, (name, mask) in enumerate(zip(names, masks, strict=True)):
        has = policy.has(re.sub("^[HL]G_", "", name), COMPLETE)
        assert has == ours(mask)
        assert {policy.draw(has, 0, epoch, i) for epoch in range(3)} == {has}
        drops = {dropping.draw(has, 0, epoch, i) for epoch in range(3)}
        assert all(k <= h for subset in drops for k, h in zip(subset, has, strict=True))


@pytest.mark.parametrize(("year", "digits"), [file[:2] for file in FILES])
def test_rates_keep_each_modality_as_often_as_the_file_does(year: str, digits: str) -> None:
    t1, t1c, flair, t2 = (int(digit) / 10 for digit in digits)
    rates = [t1, t1c, t2, flair]
    chances = [prod(1 - r if k else r for r, k in zip(rates, s, strict=True)) for s in SUBSETS]
    masks = drawn(len(cases(year)), digits)
    policy = MissingRates(rates)
    many = [policy.has(f"case {i}", COMPLETE) for i in range(4000)]
    for m in range(len(MODALITIES)):
        expected = sum(p for p, s in zip(chances, SUBSETS, strict=True) if s[m]) / sum(chances)
        theirs = sum(ours(mask)[m] for mask in masks) / len(masks)
        # Theirs but for the rounding of 15 quotas, ours but for three deviations of chance.
        assert theirs == pytest.approx(expected, abs=0.025)
        assert sum(has[m] for has in many) / len(many) == pytest.approx(expected, abs=0.024)
