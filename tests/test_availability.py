"""Which modalities a training sample keeps."""

from collections import Counter
from math import prod
from pathlib import Path

import pytest

from bts_lightning.availability import (
    Availability,
    Bernoulli,
    Complete,
    CompleteFirst,
    EpochAlternate,
    MissingRates,
    SizeUniform,
    Uniform15,
)
from bts_lightning.errors import DataError
from bts_lightning.modalities import COMPLETE, SUBSETS, Subset, parse_subset, subset_name

SCHEMES = [
    Complete(),
    Uniform15(),
    SizeUniform(),
    Bernoulli(0.5),
    Bernoulli(0.01),
    EpochAlternate(),
    CompleteFirst(1, SizeUniform()),
]
DRAWS = 4000


def frequencies(
    scheme: Availability, epoch: int = 0, available: Subset = COMPLETE
) -> dict[Subset, float]:
    drawn = Counter(scheme.draw(available, seed=5, epoch=epoch, index=i) for i in range(DRAWS))
    return {subset: count / DRAWS for subset, count in drawn.items()}


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: type(scheme).__name__)
def test_a_draw_is_within_the_case_and_never_empty(scheme: Availability) -> None:
    for available in SUBSETS:
        for epoch in range(2):
            for index in range(20):
                drawn = scheme.draw(available, 1, epoch, index)
                assert any(drawn)
                assert all(a or not d for a, d in zip(available, drawn, strict=True))


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: type(scheme).__name__)
def test_a_draw_depends_on_its_place_alone(scheme: Availability) -> None:
    forwards = [scheme.draw(COMPLETE, 3, 2, index) for index in range(30)]
    backwards = [scheme.draw(COMPLETE, 3, 2, index) for index in reversed(range(30))]
    assert forwards == backwards[::-1]


def test_complete_epochs_come_before_those_of_another_scheme() -> None:
    scheme = CompleteFirst(2, SizeUniform())
    assert scheme.weights(1) == Complete().weights(1)
    assert scheme.weights(2) == SizeUniform().weights(2)


def test_seed_epoch_and_index_each_change_the_draws() -> None:
    scheme = Uniform15()
    base = [scheme.draw(COMPLETE, 0, 0, i) for i in range(40)]
    assert base != [scheme.draw(COMPLETE, 1, 0, i) for i in range(40)]
    assert base != [scheme.draw(COMPLETE, 0, 1, i) for i in range(40)]
    assert len(set(base)) > 5


def test_uniform15_draws_each_subset_equally_often() -> None:
    seen = frequencies(Uniform15())
    assert set(seen) == set(SUBSETS)
    assert all(abs(share - 1 / 15) < 0.02 for share in seen.values())


def test_size_uniform_draws_each_size_equally_often() -> None:
    seen = frequencies(SizeUniform())
    for size in range(1, 5):
        share = sum(f for subset, f in seen.items() if sum(subset) == size)
        assert abs(share - 0.25) < 0.03


def test_bernoulli_keeps_modalities_independently_given_that_one_is_kept() -> None:
    seen = frequencies(Bernoulli(0.8))
    nothing = 0.2**4
    assert abs(seen[COMPLETE] - 0.8**4 / (1 - nothing)) < 0.03
    first = sum(f for subset, f in seen.items() if subset[0])
    assert abs(first - 0.8 / (1 - nothing)) < 0.03


def test_bernoulli_one_keeps_everything() -> None:
    assert set(frequencies(Bernoulli(1.0))) == {COMPLETE}


def test_epoch_alternate_begins_incomplete_and_is_complete_in_odd_epochs() -> None:
    assert set(frequencies(EpochAlternate(), epoch=1)) == {COMPLETE}
    even = frequencies(EpochAlternate(), epoch=0)
    assert COMPLETE not in even
    for subset, share in even.items():
        expected = {1: 1 / 12, 2: 1 / 18, 3: 1 / 12}[sum(subset)]
        assert abs(share - expected) < 0.02


def test_a_case_without_flair_is_still_drawn_uniformly_over_what_it_has() -> None:
    seen = frequencies(Uniform15(), available=parse_subset("t1+t1c+t2"))
    assert len(seen) == 7
    assert all(abs(share - 1 / 7) < 0.03 for share in seen.values())


def test_complete_keeps_what_an_incomplete_case_has() -> None:
    available = parse_subset("t1c+flair")
    assert set(frequencies(Complete(), available=available)) == {available}


def test_a_case_with_no_modality_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one true"):
        Uniform15().draw((False, False, False, False), 0, 0, 0)


@pytest.mark.parametrize("largest", [0, 5])
def test_an_impossible_size_is_refused(largest: int) -> None:
    with pytest.raises(ValueError, match="a size from 1 to 4"):
        SizeUniform(largest)


@pytest.mark.parametrize("p", [0.0, -0.1, 1.5])
def test_an_impossible_probability_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match="probability to keep"):
        Bernoulli(p)


RATES = (0.2, 0.4, 0.8, 0.6)


def test_missing_rates_give_each_case_what_its_rates_say_for_good() -> None:
    policy, cases = MissingRates(RATES), 6000
    seen = Counter(policy.has(f"case {i}", COMPLETE) for i in range(cases))
    chances = {
        subset: prod(1 - r if kept else r for r, kept in zip(RATES, subset, strict=True))
        for subset in SUBSETS
    }
    expected = {subset: cases * p / sum(chances.values()) for subset, p in chances.items()}
    chi2 = sum((seen[subset] - n) ** 2 / n for subset, n in expected.items())
    assert chi2 < 36.1  # 14 degrees of freedom, one in a thousand
    again = MissingRates(RATES)
    for i in range(50):
        has = policy.has(f"case {i}", COMPLETE)
        assert again.has(f"case {i}", COMPLETE) == has
        assert {policy.draw(has, 0, epoch, i) for epoch in range(5)} == {has}


def test_missing_rates_leave_something_of_what_a_case_has() -> None:
    policy = MissingRates([0.99] * 4)
    for i in range(50):
        assert policy.has(f"case {i}", (False, True, True, False)) in [
            (False, True, False, False),
            (False, False, True, False),
            (False, True, True, False),
        ]


def test_missing_rates_draw_uniformly_within_what_a_case_has() -> None:
    seen = frequencies(MissingRates(RATES, within=Uniform15()), available=parse_subset("t1+flair"))
    assert all(abs(share - 1 / 3) < 0.03 for share in seen.values())
    assert len(seen) == 3


PASSION = """data_name,mask_id,mask,pos_mask_ids
HG_BraTS20_Training_002,10,"[True, True, True, False]","[1, 2, 3, 5, 6, 9, 10]"
HG_BraTS20_Training_003,2,"[False, False, True, False]",[2]
HG_BraTS20_Training_127,0,"[False, False, False, True]",[0]
LG_BraTS20_Training_289,12,"[True, True, False, True]","[0, 1, 3, 4, 8, 9, 12]"
"""


def test_files_of_the_authors_say_what_a_case_has(tmp_path: Path) -> None:
    file = tmp_path / "imb_split_mr2468.csv"
    file.write_text(PASSION)
    policy = MissingRates(file=file)
    for number, name in {
        "002": "t1+t1c+flair",
        "003": "t1",
        "127": "t2",
        "289": "t1c+t2+flair",
    }.items():
        assert subset_name(policy.has(f"BraTS20_Training_{number}", COMPLETE)) == name
    assert subset_name(policy.has("HG_BraTS20_Training_002", COMPLETE)) == "t1+t1c+flair"
    with pytest.raises(DataError, match="no row for the training case BraTS20_Training_004"):
        policy.has("BraTS20_Training_004", COMPLETE)
    with pytest.raises(DataError, match="leaves nothing"):
        policy.has("BraTS20_Training_003", (False, True, True, True))


def test_a_file_that_is_no_list_of_masks_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.csv"
    file.write_text("name,mask\na,1\n")
    with pytest.raises(DataError, match="columns data_name and mask"):
        MissingRates(file=file).has("a", COMPLETE)
    with pytest.raises(DataError, match="cannot be read"):
        MissingRates(file=tmp_path / "none.csv").has("a", COMPLETE)


@pytest.mark.parametrize("rates", [[0.2] * 3, [0.2, 0.4, 0.6, 1.2], [1.0] * 4])
def test_impossible_rates_are_refused(rates: list[float]) -> None:
    with pytest.raises(ValueError, match="numbers from 0 to 1"):
        MissingRates(rates)
    with pytest.raises(ValueError, match="not both"):
        MissingRates()
