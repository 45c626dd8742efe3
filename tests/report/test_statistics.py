import numpy as np
import pytest
from scipy import stats

from bts_lightning.report.statistics import bootstrap, fewest_cases, groups, holm, signed_rank
from bts_lightning.report.table import SUBSET_NAMES


def test_holm_by_hand() -> None:
    # Sorted: 0.01·4, 0.02·3, 0.03·2, 0.5·1, each at least as large as the one before.
    p = np.array([0.03, 0.01, 0.5, 0.02])
    np.testing.assert_allclose(holm(p), [0.06, 0.04, 0.5, 0.06])


def test_holm_never_falls_behind_a_smaller_p() -> None:
    # 0.01·3 and 0.011·2: the second would come out below the first.
    np.testing.assert_allclose(holm(np.array([0.011, 0.01, 0.5])), [0.03, 0.03, 0.5])


def test_holm_leaves_absent_cells_out_of_the_family() -> None:
    np.testing.assert_allclose(holm(np.array([0.01, np.nan, 0.04])), [0.02, np.nan, 0.04])


def test_holm_never_exceeds_one() -> None:
    assert holm(np.array([0.6, 0.7, 0.9])).max() == 1.0


def test_signed_rank_by_hand() -> None:
    # Five differences of one sign: 2 of the 32 sign patterns are as extreme.
    assert signed_rank(np.array([1.0, 2.0, 3.0, 4.0, 5.0])) == pytest.approx(2 / 32)


def test_signed_rank_with_a_tie_by_hand() -> None:
    # Ranks 1.5, 1.5, 3, the lone minus at 1.5: of 8 patterns, 3 have a sum of at most 1.5
    # (none, or either of the tied alone), so p is 2 · 3 / 8.
    assert signed_rank(np.array([1.0, -1.0, 2.0])) == pytest.approx(6 / 8)


@pytest.mark.parametrize("cases", [6, 14, 50, 51, 120])
def test_signed_rank_agrees_with_scipy(cases: int) -> None:
    differences = np.random.default_rng(cases).normal(0.3, 1, cases)
    assert signed_rank(differences) == pytest.approx(stats.wilcoxon(differences).pvalue)


@pytest.mark.parametrize(("differences", "p"), [([0.0, 0.0], 1.0), ([np.nan, 0.3], 1.0)])
def test_signed_rank_of_next_to_nothing(differences: list[float], p: float) -> None:
    assert signed_rank(np.array(differences)) == p


def test_signed_rank_of_nothing_is_nan() -> None:
    assert np.isnan(signed_rank(np.array([np.nan])))


def test_bootstrap_is_the_same_for_the_same_seed_only() -> None:
    values = np.random.default_rng(1).random((20, 2, 3))
    first, again, other = (bootstrap(values, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.replicates, again.replicates)
    assert (first.replicates != other.replicates).any()


def test_bootstrap_interval_agrees_with_the_normal_one_for_many_cases() -> None:
    values = np.random.default_rng(2).normal(0.8, 0.1, size=(400, 1))
    cells = bootstrap(values).cells()
    half = 1.96 * values.std() / np.sqrt(400)
    np.testing.assert_allclose(cells.low, values.mean() - half, atol=6e-4)
    np.testing.assert_allclose(cells.high, values.mean() + half, atol=6e-4)


def test_equal_cases_have_no_spread() -> None:
    cells = bootstrap(np.full((7, 2), 0.5)).cells()
    np.testing.assert_array_equal([cells.mean, cells.low, cells.high], np.full((3, 2), 0.5))


def test_values_that_are_not_there_take_no_part() -> None:
    values = np.array([[0.2, np.nan], [0.4, np.nan], [np.nan, np.nan]])
    cells = bootstrap(values).cells()
    np.testing.assert_allclose(cells.mean, [0.3, np.nan])
    np.testing.assert_array_equal(cells.count, [2, 0])
    assert cells.low[0] == 0.2
    assert np.isnan(cells.high[1])


def test_one_case_has_no_interval() -> None:
    cells = bootstrap(np.array([[0.7]])).cells()
    assert cells.mean == 0.7
    assert np.isnan([cells.low, cells.high]).all()


def test_cells_share_their_resampled_cases() -> None:
    # The second subset is the first plus a constant: their difference must not vary.
    first = np.random.default_rng(3).random((10, 1, 1))
    replicates = bootstrap(np.concatenate([first, first + 0.25], axis=1)).replicates
    np.testing.assert_allclose(replicates[:, 1] - replicates[:, 0], 0.25)


def test_average_over_subsets_is_the_mean_of_the_cell_means() -> None:
    values = np.random.default_rng(4).random((10, 15, 3))
    estimate = bootstrap(values).over(range(15))
    np.testing.assert_allclose(estimate.mean, values.mean(axis=(0, 1)))
    assert (estimate.low < estimate.mean).all()
    assert (estimate.mean < estimate.high).all()


def test_groups_split_by_t1c() -> None:
    named = groups(SUBSET_NAMES)
    assert [len(indices) for indices in named.values()] == [15, 8, 7]
    assert list(groups(["t2", "flair"])) == ["mean over 2", "without T1c (2)"]


def test_fewest_cases_by_hand() -> None:
    # 45 · 2 / 2^10 = 0.088 and 45 · 2 / 2^11 = 0.044.
    assert fewest_cases(45) == 11
    assert fewest_cases(1) == 6
