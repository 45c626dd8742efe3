"""Which modalities a training sample keeps."""

from collections import Counter

import pytest

from bts_lightning.availability import (
    Availability,
    Bernoulli,
    Complete,
    EpochAlternate,
    SizeUniform,
    Uniform15,
)
from bts_lightning.modalities import COMPLETE, SUBSETS, Subset, parse_subset

SCHEMES = [
    Complete(),
    Uniform15(),
    SizeUniform(),
    Bernoulli(0.5),
    Bernoulli(0.01),
    EpochAlternate(),
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


@pytest.mark.parametrize("p", [0.0, -0.1, 1.5])
def test_an_impossible_probability_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match="probability to keep"):
        Bernoulli(p)
